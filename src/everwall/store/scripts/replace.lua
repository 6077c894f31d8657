-- Write a key if it holds what is expected there.
--
-- KEYS[1]   the key
-- ARGV[1]   what is expected
-- ARGV[2]   what it shall hold
--
-- Answers 1 when it was written, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
