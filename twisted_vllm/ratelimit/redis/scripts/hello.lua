-- ARGV: process, epoch. Begin a connection's epoch. The result is '-1' if nothing is known of the process, else the numbers
-- of its admissions that are not settled, with spaces between them.
local known = redis.call('SET', lease(ARGV[1]), ARGV[2], 'PX', LEASE_MS, 'GET')
if not known then return '-1' end
redis.call('PEXPIRE', admissions(ARGV[1]), LEASE_MS)
return table.concat(redis.call('SMEMBERS', admissions(ARGV[1])), ' ')
