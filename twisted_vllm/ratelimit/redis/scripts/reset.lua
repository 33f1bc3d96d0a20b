-- KEYS: a budget. ARGV: the start of the period, what was spent. Set it, for what living processes have reserved stays.
local found = redis.call('HGET', KEYS[1], 'start')
if found and tonumber(ARGV[1]) >= tonumber(found) then
  redis.call('HSET', KEYS[1], 'start', ARGV[1], 'spent', ARGV[2], 'reset', text(clock()))
  redis.call('HDEL', KEYS[1], 'warned')
end
return {ok = 'done'}
