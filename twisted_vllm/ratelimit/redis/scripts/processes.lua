-- What a process holds counts while its lease lasts. The lease is a key that the process renews; its value is the epoch
-- of the process's connection. A set has the numbers of its open admissions, so that each is settled once.
-- Longer than any request. It removes what a killed process left behind.
local HELD_MS = 86400000

local function lease(process)
  return PREFIX .. 'process:' .. process
end

local function admissions(process)
  return PREFIX .. 'admissions:' .. process
end

-- Why a command must not be done: 'lost' (the lease ended), 'stale' (it comes from a former connection), or nil.
local function rejection(process, epoch)
  local found = redis.call('GET', lease(process))
  if not found then return 'lost' end
  if found ~= epoch then return 'stale' end
  return nil
end

-- The sum of what the living processes hold. What others held is dropped.
local function held(key, prefix)
  local sum, found = 0, redis.call('HGETALL', key)
  for index = 1, #found, 2 do
    local field = found[index]
    if string.sub(field, 1, #prefix) == prefix then
      if redis.call('EXISTS', lease(string.sub(field, #prefix + 1))) == 1 then
        sum = sum + tonumber(found[index + 1])
      else
        redis.call('HDEL', key, field)
      end
    end
  end
  return sum
end

local function release(key, field, amount)
  if redis.call('HEXISTS', key, field) == 1 and redis.call('HINCRBY', key, field, '-' .. amount) <= 0 then
    redis.call('HDEL', key, field)
  end
end
