-- Remove what has expired from one bucket, and let the bucket itself live on while something is in it.
--
-- KEYS[1]  the bucket
-- ARGV[1]  where the expiry stands in a value, counted from 1: seconds, four bytes, big-endian
-- ARGV[2]  seconds that a bucket lives at least after it was renewed
-- ARGV[3]  a bucket with more fields is left alone
-- ARGV[4]  what time it is, seconds; 0: what this server's clock says
--
-- Answers: how many were removed, 1 when the bucket was renewed, 1 when it was left alone.
--
-- A value too short to have an expiry is nobody's record. The fields are asked for only where something has to
-- go: reading them as well costs a third more.
local key, at, life, most = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('HLEN', key) > most then
  return {0, 0, 1}
end
local now = tonumber(ARGV[4])
if now == 0 then
  now = tonumber(redis.call('TIME')[1])
end
local function ends(value)
  return #value >= at + 3 and struct.unpack('>I4', value, at) or 0
end
local latest, dead = 0, 0
for _, value in ipairs(redis.call('HVALS', key)) do
  local expiry = ends(value)
  if expiry <= now then
    dead = dead + 1
  elseif expiry > latest then
    latest = expiry
  end
end
if dead > 0 then
  local pairs_of = redis.call('HGETALL', key)
  for i = 1, #pairs_of, 2 do
    if ends(pairs_of[i + 1]) <= now then
      redis.call('HDEL', key, pairs_of[i])
    end
  end
end
if latest == 0 then
  return {dead, 0, 0}
end
local left = redis.call('TTL', key)
if left < latest - now or left < life / 2 then
  redis.call('EXPIRE', key, math.max(life, 2 * (latest - now)))
  return {dead, 1, 0}
end
return {dead, 0, 0}
