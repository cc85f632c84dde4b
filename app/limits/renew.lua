-- Leases that are still held. KEYS: the slots. ARGV: milliseconds of a lease, then the leases.
local time = redis.call('TIME')
local expiry = time[1] * 1000 + time[2] / 1000 + ARGV[1]
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], expiry, ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], 2 * ARGV[1])
