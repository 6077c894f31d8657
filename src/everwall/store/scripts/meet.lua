#!lua flags=allow-oom
-- Tell the others of a node and hear of them.
--
-- KEYS[1]  the hash that all nodes share
-- ARGV[1]  the node's field
-- ARGV[2]  what it has to say
-- ARGV[3]  seconds for which that holds
-- ARGV[4]  with more fields the hash is not ours, and begun again
--
-- Answers with field and saying of each node whose time has not passed; what is over is removed.
local key, life = KEYS[1], tonumber(ARGV[3])
if redis.call('HLEN', key) > tonumber(ARGV[4]) then
  redis.call('DEL', key)
end
local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', key, ARGV[1], struct.pack('>I4', now + life) .. ARGV[2])
redis.call('EXPIRE', key, life)
local all, living = redis.call('HGETALL', key), {}
for i = 1, #all, 2 do
  if #all[i + 1] >= 4 and struct.unpack('>I4', all[i + 1], 1) > now then
    living[#living + 1] = all[i]
    living[#living + 1] = string.sub(all[i + 1], 5)
  else
    redis.call('HDEL', key, all[i])
  end
end
return living
