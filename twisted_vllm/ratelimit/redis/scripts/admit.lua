-- KEYS: what is looked at, in the order of the limits.
-- ARGV: process, epoch, number of the admission; then five for each key:
--   'work', limit or '', '', '', ''
--   'window', limit, needed, amount, ''
--   'budget', limit or '', needed, amount, the start of the period, with '/' and what the database says was spent
-- The result is words: 'lost' or 'stale'; else 'yes' or 'no' and, for each key, joined by commas:
--   wait (microseconds; 0 is none, -1 for ever), used before this request, empty after (microseconds), where it is counted
local process, epoch = ARGV[1], ARGV[2]
local refused = objection(process, epoch)
if refused then return {ok = refused} end
local now = clock()

local opened, waits, used, fits = {}, {}, {}, true
for index, key in ipairs(KEYS) do
  local at = 4 + (index - 1) * 5
  local kind, limit, needed = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local wait = 0
  if kind == 'work' then
    if limit and held(key, '') >= limit then wait = limit > 0 and 1000000 or -1 end
    used[index] = 0
  elseif kind == 'window' then
    local window = open_window(key, now)
    opened[index], used[index] = window, window.used
    if window.used + needed > limit then wait = wait_of(window, limit, needed, now) end
  else
    local start, known = string.match(ARGV[at + 4], '(%d+)/(%d+)')
    local found = redis.call('HMGET', key, 'start', 'spent', 'reset')
    if not found[1] or tonumber(start) > tonumber(found[1]) then
      redis.call('DEL', key)
      redis.call('HSET', key, 'start', start, 'spent', known)
      found = {start, known, false}
    elseif start == found[1] and tonumber(known) > tonumber(found[2])
        and not (found[3] and tonumber(found[3]) > now - RESET_HOLDS) then
      -- Somebody spent while Redis was away or had forgotten.
      redis.call('HSET', key, 'spent', known)
      found[2] = known
    end
    redis.call('PEXPIRE', key, BUDGET_MS)
    opened[index], used[index] = found[1], found[2]
    if limit then
      if needed > limit then wait = -1
      elseif tonumber(found[2]) + held(key, 'reserved:') + needed > limit then wait = 1 end
    end
  end
  waits[index] = wait
  if wait ~= 0 then fits = false end
end

if fits then
  redis.call('SADD', admissions(process), ARGV[3])
  redis.call('PEXPIRE', admissions(process), LEASE_MS)
end
local told = {fits and 'yes' or 'no'}
for index, key in ipairs(KEYS) do
  local at = 4 + (index - 1) * 5
  local kind, amount, where, empty = ARGV[at], ARGV[at + 3], '', 0
  if kind == 'work' then
    if fits then
      redis.call('HINCRBY', key, process, 1)
      redis.call('PEXPIRE', key, HELD_MS)
    end
  elseif kind == 'window' then
    if fits then where = add(opened[index], tonumber(amount), now) end
    empty = empty_after(opened[index], now)
  else
    where = opened[index]
    if fits and amount ~= '0' then redis.call('HINCRBY', key, 'reserved:' .. process, amount) end
  end
  told[index + 1] = text(waits[index]) .. ',' .. text(tonumber(used[index])) .. ',' .. text(empty) .. ',' .. where
end
return {ok = table.concat(told, ' ')}
