-- Delete the records of a bucket that are still what was read.
--
-- KEYS[1]                 the bucket
-- ARGV[2i - 1], ARGV[2i]  field and what was read there
--
-- Answers how many were deleted.
local deleted = 0
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    deleted = deleted + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return deleted
