-- Write sealed session records, each unless a newer one lies there.
--
-- KEYS[i]        the bucket of record i
-- ARGV[2i - 1]   its field
-- ARGV[2i]       the record, 52 bytes; 4 bytes more are the expiry of what may be written over, whatever its order: the
--                asker has seen that it is no valid record any more
--
-- Answers, for each record, 1 when it was written, else the record that was kept. The expiry is bytes 30 to 33 of a
-- record, counted from 1: who has written a live one meanwhile has given it a later one.
local answers = {}
for i = 1, #KEYS do
  local field, new = ARGV[2 * i - 1], ARGV[2 * i]
  local old = redis.call('HGET', KEYS[i], field)
  local over = false
  if #new > 52 then
    over = old and (#old < 33 or struct.unpack('>I4', old, 30) <= struct.unpack('>I4', new, 53))
    new = string.sub(new, 1, 52)
  end
  if over or wins(new, old) then
    redis.call('HSET', KEYS[i], field, new)
    answers[i] = 1
  else
    answers[i] = old
  end
end
return answers
