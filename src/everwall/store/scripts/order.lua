-- Stands before write.lua and delete.lua: which of two records of one session is to stay.
--
-- A record's order is its start and generation, bytes 22 to 29 counted from 1; its owner is bytes 18 to 21.
-- The higher order wins; with the same order the owner may write again (a refresh) and nobody else. The
-- order is compared as two numbers: the server sets a locale, so `<` on strings would not compare bytes.
-- What lies there may be anything; too short to have an order, it stands in nobody's way.
local function wins(new, old)
  if not old or #old < 29 then
    return true
  end
  local old_high, old_low = struct.unpack('>I4I4', old, 22)
  local new_high, new_low = struct.unpack('>I4I4', new, 22)
  if old_high ~= new_high then
    return new_high > old_high
  end
  if old_low ~= new_low then
    return new_low > old_low
  end
  return struct.unpack('>I4', old, 18) == struct.unpack('>I4', new, 18)
end
