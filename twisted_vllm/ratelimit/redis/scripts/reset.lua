-- Set what was spent of a budget; reservations stay. KEYS: the budget. ARGV: start of the period, what was spent.
local found = redis.call('HGET', KEYS[1], 'start')
if found and tonumber(ARGV[1]) >= tonumber(found) then
  redis.call('HSET', KEYS[1], 'start', ARGV[1], 'spent', ARGV[2], 'reset', text(clock()))
  redis.call('HDEL', KEYS[1], 'warned')
end
return {ok = 'done'}
