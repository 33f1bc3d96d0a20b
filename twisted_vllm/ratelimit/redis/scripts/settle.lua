-- KEYS: what was counted at admission. ARGV: process, epoch, the process that admitted, the admission's number; then four
-- for each key:
--   'work', '', '', ''
--   'window', where it is counted, the difference to what was reserved, ''
--   'budget', the start of the period ('' is any), reserved, cost, with '/' and the soft budget
-- The result is words: 'lost' or 'stale'; else 'done' and, for each budget whose soft budget was crossed now, the number
-- of its key, a comma and what was spent.
local refused = objection(ARGV[1], ARGV[2])
if refused then return {ok = refused} end
local now = clock()
local holder, told = ARGV[3], {'done'}
if redis.call('SREM', admissions(holder), ARGV[4]) == 0 then return {ok = 'done'} end

for index, key in ipairs(KEYS) do
  local at = 5 + (index - 1) * 4
  local kind = ARGV[at]
  if kind == 'work' then
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
        told[#told + 1] = text(index - 1) .. ',' .. text(spent)
      end
    end
  end
end
return {ok = table.concat(told, ' ')}
