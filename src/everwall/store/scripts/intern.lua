-- Put a host name into its bucket, or let it live on there.
--
-- KEYS[1]   the bucket
-- ARGV[1]   the name's id: its field; the name's pieces after the first have a byte more, 1 and so on
-- ARGV[2]   how many pieces a name may have
-- ARGV[3]   seconds that it lives from now on
-- ARGV[4]   1: whatever stands there goes
-- ARGV[5..] the sealed name in pieces
--
-- Answers 1 when it is there, else the other sealed name that has not expired and was left.
local key, field, life = KEYS[1], ARGV[1], tonumber(ARGV[3])
local fields = {field}
for i = 1, ARGV[2] - 1 do
  fields[i + 1] = field .. string.char(i)
end
local now = tonumber(redis.call('TIME')[1])
local old = redis.call('HMGET', key, unpack(fields))
local standing, new = '', ''
for i = 1, #fields do
  standing = standing .. string.sub(old[i] or '', 5)
  new = new .. (ARGV[4 + i] or '')
end
local lives = old[1] and #old[1] >= 4 and struct.unpack('>I4', old[1], 1) > now
if lives and standing ~= new and ARGV[4] ~= '1' then
  return standing
end
local expiry = struct.pack('>I4', now + life)
for i = 1, #fields do
  if ARGV[4 + i] then
    redis.call('HSET', key, fields[i], expiry .. ARGV[4 + i])
  elseif old[i] then
    redis.call('HDEL', key, fields[i])
  end
end
if redis.call('TTL', key) < life then
  redis.call('EXPIRE', key, 2 * life)
end
return 1
