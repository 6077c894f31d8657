-- Delete session records, each unless a newer one lies there.
--
-- KEYS[i]        the bucket of record i
-- ARGV[2i - 1]   its field
-- ARGV[2i]       the record as its owner would write it now
--
-- Answers, for each record, 1 when nothing is left of it, else the record that was kept.
local answers = {}
for i = 1, #KEYS do
  local field, gone = ARGV[2 * i - 1], ARGV[2 * i]
  local old = redis.call('HGET', KEYS[i], field)
  if wins(gone, old) then
    if old then
      redis.call('HDEL', KEYS[i], field)
    end
    answers[i] = 1
  else
    answers[i] = old
  end
end
return answers
