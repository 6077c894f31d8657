-- Put records that were read in another epoch into the bucket that they have in this one.
--
-- KEYS[1]                 the bucket
-- ARGV[1]                 seconds that it lives at least
-- ARGV[2i], ARGV[2i + 1]  field and record
--
-- What lies there already stays unless it is older. Answers how many records were put there.
local put = 0
for i = 2, #ARGV, 2 do
  local there = redis.call('HGET', KEYS[1], ARGV[i])
  if not there or #there < 29 or not wins(there, ARGV[i + 1]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    put = put + 1
  end
end
if put > 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[1], 'NX')
  redis.call('EXPIRE', KEYS[1], ARGV[1], 'GT')
end
return put
