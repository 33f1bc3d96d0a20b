-- Admit a request if every limit lets it begin, and count it.
-- KEYS: the counters, in the order of the limits.
-- ARGV: process, epoch, number of the admission; then five for each key:
--   'parallel', limit or '', '', '', ''
--   'window', limit, needed, amount, ''
--   'budget', limit or '', needed, amount, start of the period '/' what the database says was spent in it
-- Result: 'lost' or 'stale'; or 'yes' or 'no' and a word for each key, of four parts with commas between them:
--   wait (microseconds; 0 is now, -1 is never), used before this request, empty after (microseconds), bucket or period
local process, epoch = ARGV[1], ARGV[2]
local rejected = rejection(process, epoch)
if rejected then return {ok = rejected} end
local now = clock()

local opened, waits, used, fits = {}, {}, {}, true
for index, key in ipairs(KEYS) do
  local at = 4 + (index - 1) * 5
  local kind, limit, needed = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local wait = 0
  if kind == 'parallel' then
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
      -- The database knows more: another process spent while Redis was unavailable, or Redis lost its memory.
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
local results = {fits and 'yes' or 'no'}
for index, key in ipairs(KEYS) do
  local at = 4 + (index - 1) * 5
  local kind, amount, bucket, empty = ARGV[at], ARGV[at + 3], '', 0
  if kind == 'parallel' then
    if fits then
      redis.call('HINCRBY', key, process, 1)
      redis.call('PEXPIRE', key, HELD_MS)
    end
  elseif kind == 'window' then
    if fits then bucket = add(opened[index], tonumber(amount), now) end
    empty = empty_after(opened[index], now)
  else
    bucket = opened[index]
    if fits and amount ~= '0' then redis.call('HINCRBY', key, 'reserved:' .. process, amount) end
  end
  results[index + 1] = text(waits[index]) .. ',' .. text(tonumber(used[index])) .. ',' .. text(empty) .. ',' .. bucket
end
return {ok = table.concat(results, ' ')}
