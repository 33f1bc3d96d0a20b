-- Renew the lease. ARGV: process. Result: '1', or '0' if the lease has ended.
redis.call('PEXPIRE', admissions(ARGV[1]), LEASE_MS)
return {ok = tostring(redis.call('PEXPIRE', lease(ARGV[1]), LEASE_MS))}
