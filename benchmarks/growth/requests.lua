-- wrk's script: requests of many keys, and perhaps end users, each in its turn, far from the one before.
-- arguments: KEYS, END_USERS (0: none), BEFORE (requests that came before), PAUSE (milliseconds of a connection)
local KEY, END_USER = "sk-growth-%013d", "end-user-%07d"
-- a prime that divides no number of keys in use
local STEP = 7368787
local BODY = '{"model":"bench","messages":[{"role":"user","content":"I am going to Paris, what should I see?"}],'
  .. '"max_tokens":8,"temperature":0.8,"top_p":0.95%s}'
local keys, end_users, number, pause, head, tail

function init(args)
  keys, end_users, number, pause = tonumber(args[1]), tonumber(args[2]), tonumber(args[3]) * STEP, tonumber(args[4])
  local named = end_users > 0 and ',"user":"' .. END_USER .. '"' or ""
  local length = #string.format(BODY, end_users > 0 and string.format(named, 0) or "")
  head = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port .. "\r\nAuthorization: Bearer " .. KEY
    .. "\r\nContent-Type: application/json\r\nContent-Length: " .. length .. "\r\n\r\n"
  tail = string.format(BODY, named)
end

function request()
  number = number + STEP
  local text = string.format(head, number % keys)
  if end_users > 0 then
    return text .. string.format(tail, number % end_users)
  end
  return text .. tail
end

function delay()
  return pause
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"seconds":%.6f,"failed":%d,"broken":%d,"p50":%.3f,"p99":%.3f}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
