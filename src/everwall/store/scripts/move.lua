-- Move the records of a bucket to those that they have in another epoch.
--
-- KEYS[1]        the bucket
-- KEYS[1 + i]    where field i belongs from now on
-- ARGV[i]        the field
-- ARGV[#KEYS]    seconds that the new bucket lives at least
--
-- What is no record, or has expired, is dropped; what lies there already stays unless it is older. Answers how many
-- records were moved. The expiry is bytes 30 to 33 of a record, counted from 1.
local now = tonumber(redis.call('TIME')[1])
local life = math.max(redis.call('TTL', KEYS[1]), tonumber(ARGV[#KEYS]))
local moved = 0
for i = 2, #KEYS do
  local field = ARGV[i - 1]
  local record = redis.call('HGET', KEYS[1], field)
  if record and #record == 52 and struct.unpack('>I4', record, 30) >= now then
    local there = redis.call('HGET', KEYS[i], field)
    if not there or #there < 29 or not wins(there, record) then
      redis.call('HSET', KEYS[i], field, record)
      redis.call('EXPIRE', KEYS[i], life, 'NX')
      redis.call('EXPIRE', KEYS[i], life, 'GT')
      moved = moved + 1
    end
  end
  redis.call('HDEL', KEYS[1], field)
end
return moved
