-- A window is a hash: the sum `used`; the numbers of its oldest and newest bucket, `head` and `tail`; and for each bucket
-- `t` (when the last of it was counted), `c` (when it closes) and `n` (its amount), each followed by its number.
-- Numbers begin with the time, so a bucket of an expired window is never taken for one of the next window.
local WINDOW = 60000000
local GRAIN = 250000

local function text(number)
  return string.format('%.0f', number)
end

local function open_window(key, now)
  local found = redis.call('HMGET', key, 'used', 'head', 'tail')
  local window = {key = key, used = tonumber(found[1]) or 0, head = tonumber(found[2]), tail = tonumber(found[3])}
  if not window.head then
    window.head, window.tail = now, now - 1
    return window
  end
  local first = window.head
  while window.head <= window.tail do
    local name = text(window.head)
    local bucket = redis.call('HMGET', key, 't' .. name, 'n' .. name)
    if tonumber(bucket[1]) + WINDOW > now then break end
    window.used = window.used - tonumber(bucket[2])
    redis.call('HDEL', key, 't' .. name, 'c' .. name, 'n' .. name)
    window.head = window.head + 1
  end
  if window.head > window.tail then
    redis.call('DEL', key)
    window.used = 0
  elseif window.head > first then
    redis.call('HSET', key, 'used', text(window.used), 'head', text(window.head))
  end
  return window
end

-- Count an amount, and return the number of its bucket.
local function add(window, amount, now)
  local key, name = window.key, text(window.tail)
  window.used = window.used + amount
  local closes = window.head <= window.tail and redis.call('HGET', key, 'c' .. name)
  if closes and now < tonumber(closes) then
    redis.call('HINCRBY', key, 'n' .. name, text(amount))
    redis.call('HSET', key, 't' .. name, text(now), 'used', text(window.used))
  else
    window.tail = window.tail + 1
    name = text(window.tail)
    redis.call('HSET', key, 'used', text(window.used), 'head', text(window.head), 'tail', name,
      't' .. name, text(now), 'c' .. name, text(now + GRAIN), 'n' .. name, text(amount))
  end
  redis.call('PEXPIRE', key, WINDOW / 1000 + 1000)
  return name
end

-- Take out what was too much, while the bucket still counts, or count now what is missing.
local function correct(key, name, difference, now)
  if difference > 0 then
    add(open_window(key, now), difference, now)
  elseif redis.call('HEXISTS', key, 'n' .. name) == 1 then
    redis.call('HINCRBY', key, 'n' .. name, text(difference))
    redis.call('HINCRBY', key, 'used', text(difference))
  end
end

-- The microseconds until an amount fits below a limit; -1 is never.
local function wait_of(window, limit, amount, now)
  if amount > limit then return -1 end
  local left, wait = window.used, 0
  for number = window.head, window.tail do
    if left + amount <= limit then break end
    local name = text(number)
    local bucket = redis.call('HMGET', window.key, 't' .. name, 'n' .. name)
    left = left - tonumber(bucket[2])
    wait = tonumber(bucket[1]) + WINDOW - now
  end
  return wait
end

-- The microseconds until the window is empty.
local function empty_after(window, now)
  for number = window.tail, window.head, -1 do
    local name = text(number)
    local bucket = redis.call('HMGET', window.key, 't' .. name, 'n' .. name)
    if tonumber(bucket[2]) > 0 then return math.max(tonumber(bucket[1]) + WINDOW - now, 0) end
  end
  return 0
end
