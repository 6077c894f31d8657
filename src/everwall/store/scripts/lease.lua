#!lua flags=allow-oom
-- Take on the next buckets of those that are due to be swept.
--
-- KEYS[1]  the cursor that all nodes share
-- ARGV[1]  how many buckets there are
-- ARGV[2]  seconds in which each shall be passed once
-- ARGV[3]  how many the caller takes at most
--
-- Answers with the first bucket and how many there are from it on; behind the last one comes the first.
--
-- The cursor counts buckets since the beginning of time. How far it should be is a matter of the clock, so
-- however many nodes take their shares, together they pass every bucket once in that time and no more often.
local buckets, pass, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local due = math.floor((tonumber(time[1]) + tonumber(time[2]) / 1000000) * (buckets / pass))
local given = tonumber(redis.call('GET', KEYS[1]) or due)
if not given or not (given <= due) then
  given = due -- the clock was set back, there were more buckets, or it is no number at all
elseif given < due - buckets then
  given = due - buckets -- more than a whole pass is never owed
end
local count = math.min(most, due - given)
redis.call('SET', KEYS[1], string.format('%.0f', given + count), 'EX', math.max(60, math.ceil(2 * pass)))
return {given % buckets, count}
