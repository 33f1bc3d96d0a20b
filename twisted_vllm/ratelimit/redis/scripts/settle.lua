-- Replace what a request reserved by what it used, once.
-- KEYS: the counters of its admission.
-- ARGV: process, epoch, the process that admitted it, number of the admission; then four for each key:
--   'parallel', '', '', ''
--   'window', bucket, difference to what was reserved, ''
--   'budget', start of the period ('' is any), reserved, cost '/' soft budget
-- Result: 'lost' or 'stale'; or 'done' and, for each soft budget that was crossed now, the number of its key, a comma and
-- what was spent.
local rejected = rejection(ARGV[1], ARGV[2])
if rejected then return {ok = rejected} end
local now = clock()
local holder, results = ARGV[3], {'done'}
if redis.call('SREM', admissions(holder), ARGV[4]) == 0 then return {ok = 'done'} end

for index, key in ipairs(KEYS) do
  local at = 5 + (index - 1) * 4
  local kind = ARGV[at]
  if kind == 'parallel' then
    release(key, holder, '1')
  elseif kind == 'window' then
    correct(key, ARGV[at + 1], tonumber(ARGV[at + 2]), now)
  else
    local found = redis.call('HMGET', key, 'start', 'warned')
    if found[1] and (ARGV[at + 1] == '' or ARGV[at + 1] == found[1]) then
      local cost, soft = string.match(ARGV[at + 3], '(%d+)/(%d*)')
      if ARGV[at + 2] ~= '0' then release(key, 'reserved:' .. holder, ARGV[at + 2]) end
      local spent = redis.call('HINCRBY', key, 'spent', cost)
      if soft ~= '' and soft ~= found[2] and spent >= tonumber(soft) then
        redis.call('HSET', key, 'warned', soft)
        results[#results + 1] = text(index - 1) .. ',' .. text(spent)
      end
    end
  end
end
return {ok = table.concat(results, ' ')}
