-- Write sealed session records, each unless a newer one lies there.
--
-- KEYS[i]        the bucket of record i
-- ARGV[2i - 1]   its field
-- ARGV[2i]       the record
--
-- Answers, for each record, 1 when it was written, else the record that was kept.
local answers = {}
for i = 1, #KEYS do
  local field, new = ARGV[2 * i - 1], ARGV[2 * i]
  local old = redis.call('HGET', KEYS[i], field)
  if wins(new, old) then
    redis.call('HSET', KEYS[i], field, new)
    answers[i] = 1
  else
    answers[i] = old
  end
end
return answers
