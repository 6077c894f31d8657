#!lua flags=allow-oom
-- Tell the time of a cluster, which never goes back.
--
-- KEYS[1]  the key that all nodes share: the latest time that was told, and how far it was ahead of this server's clock
-- ARGV[1]  a time that has come, as the asker knows; 0 when it knows of none
-- ARGV[2]  how far ahead it may be: what is further is believed neither of the key nor of the asker
-- ARGV[3]  so long is no pause between two questions while there are nodes
--
-- All in microseconds. Answers as TIME does.
--
-- While it is ahead it goes as fast as the server's clock, for somebody asks all the time; after a pause it need not be
-- ahead any more. So a clock that is set forward again brings time no further than it is. Of a server that has gone
-- back since the last question an asker who knows no better is told what is certainly later than anything that anybody
-- has reckoned meanwhile.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local most = now + tonumber(ARGV[2])
local key = redis.pcall('GET', KEYS[1])
local latest, ahead = string.match(type(key) == 'string' and key or '', '^(%d+) (%d+)$')
latest, ahead = tonumber(latest) or 0, tonumber(ahead) or 0
local least, pause = tonumber(ARGV[1]), tonumber(ARGV[3])
local told = now
if latest <= most then
  if now + ahead <= latest + pause then
    told = now + ahead
  end
  if told < latest then
    told = least > 0 and latest or latest + pause
  end
end
if least <= most then
  told = math.max(told, least)
end
redis.call('SET', KEYS[1], string.format('%.0f %.0f', told, told - now))
return {string.format('%.0f', math.floor(told / 1000000)), string.format('%.0f', told % 1000000)}
