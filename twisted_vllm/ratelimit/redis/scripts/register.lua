-- Begin the epoch of a new connection. ARGV: process, epoch.
-- Result: '-1' if the process is not known, or the numbers of its open admissions, with spaces between them.
local known = redis.call('SET', lease(ARGV[1]), ARGV[2], 'PX', LEASE_MS, 'GET')
if not known then return '-1' end
redis.call('PEXPIRE', admissions(ARGV[1]), LEASE_MS)
return table.concat(redis.call('SMEMBERS', admissions(ARGV[1])), ' ')
