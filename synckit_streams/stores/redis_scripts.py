"""What a Redis store asks of its server in one piece, beside its commits: scripts, which run alone and as a whole.

The keys are always the same four, in this order: the *rows*, a hash; the *order* of their keys, a sorted set; the
*head*, a hash; and the *claim*, a string that ends by itself. Two tables are in one place only. The log is in no order:
it is numbered, and found by counting. The events of an aggregate are in no hash: their values are short and stand in
the order, behind their keys.
"""

from __future__ import annotations

from hashlib import sha1
from typing import NamedTuple

from synckit_streams.stores.kv_keys import OF_AGGREGATE


class Script(NamedTuple):
    """A script, and the name under which the server keeps it."""

    text: str
    sha: str


def _script(text: str) -> Script:
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


_FENCE = """
local holder = redis.call('GET', KEYS[4])
if holder and holder ~= ARGV[1] then return {'taken', holder, redis.call('PTTL', KEYS[4])} end
"""

# ARGV: our claim and for how many ms; a new head; the mark of a store. Asked again with the same new head it answers
# what it answered before, so that it may be asked again when its answer was lost.
TAKE = _script(
    _FENCE
    + """
local head, clean, server, last = unpack(redis.call('HMGET', KEYS[3], 'head', 'clean', 'server', 'last'))
if head == ARGV[3] then
  head = redis.call('HGET', KEYS[3], 'before')
else
  redis.call('HSET', KEYS[3], 'head', ARGV[3], 'before', head or '', 'mark', ARGV[4])
  redis.call('HDEL', KEYS[3], 'clean', 'server')
end
redis.call('SET', KEYS[4], ARGV[1], 'PX', ARGV[2])
return {'ours', head or '', clean or '', server or '', last or 0}
"""
)

# ARGV: our claim and for how many ms; the head as we left it.
RENEW = _script(
    _FENCE
    + """
local head = redis.call('HGET', KEYS[3], 'head') or ''
if head ~= ARGV[3] then return {'moved', head} end
if holder then redis.call('PEXPIRE', KEYS[4], ARGV[2]) -- which also a server does that has no room
else redis.call('SET', KEYS[4], ARGV[1], 'PX', ARGV[2]) end
return {'ours', head}
"""
)

# ARGV: our claim; "", the head as we left it; what says that it was left clean, and by which server. None is left by
# whoever is not sure.
RELEASE = _script(
    _FENCE
    + """
if ARGV[4] ~= '' and redis.call('HGET', KEYS[3], 'head') == ARGV[3] then
  redis.call('HSET', KEYS[3], 'clean', ARGV[4], 'server', ARGV[5])
end
if holder then redis.call('DEL', KEYS[4]) end
return {'ours', ''}
"""
)

# Of the order's members, those of this table have their value behind their key.
_IN_ORDER = "'" + OF_AGGREGATE.decode() + "'"

# ARGV: start, end, how many, how many bytes, whether the last ones are wanted. Gives keys and values in turn.
PAGE = _script(
    """
local found
if ARGV[5] == '1' then
  found = redis.call('ZRANGE', KEYS[2], '(' .. ARGV[2], '[' .. ARGV[1], 'BYLEX', 'REV', 'LIMIT', 0, ARGV[3])
else
  found = redis.call('ZRANGE', KEYS[2], '[' .. ARGV[1], '(' .. ARGV[2], 'BYLEX', 'LIMIT', 0, ARGV[3])
end
local rows, size, most = {}, 0, tonumber(ARGV[4])
for at, key in ipairs(found) do
  if size >= most then break end
  local value = ''
  if string.sub(key, 1, 1) ~= IN_ORDER then value = redis.call('HGET', KEYS[1], key) end
  rows[2 * at - 1], rows[2 * at] = key, value
  size = size + (value and #value or 0)
end
return rows
""".replace("IN_ORDER", _IN_ORDER)
)

# The same of the log. ARGV: its letter; the first and the last position; how many, how many bytes, whether the last
# ones are wanted.
PAGE_OF_LOG = _script(
    """
local first = tonumber(ARGV[2])
local last = math.min(tonumber(ARGV[3]), tonumber(redis.call('HGET', KEYS[3], 'last') or 0))
local wanted, most = 2 * tonumber(ARGV[4]), tonumber(ARGV[5])
local step = 1
if ARGV[6] == '1' then first, last, step = last, first, -1 end
local rows, count, size = {}, 0, 0
for position = first, last, step do
  if count >= wanted or size >= most then break end
  local key = ARGV[1] .. struct.pack('>I8', position)
  local value = redis.call('HGET', KEYS[1], key)
  if value then
    rows[count + 1], rows[count + 2] = key, value
    count, size = count + 2, size + #value
  end
end
return rows
"""
)

# ARGV: start and end of each range. Gives for each its keys, and their values.
PAGES = _script(
    """
local rows, most = {}, 4000 -- so many arguments at once; Lua's stack has 8000 places
for range = 1, #ARGV, 2 do
  local found = redis.call('ZRANGE', KEYS[2], '[' .. ARGV[range], '(' .. ARGV[range + 1], 'BYLEX')
  local values = {}
  for at = 1, string.sub(ARGV[range], 1, 1) == IN_ORDER and 0 or #found, most do
    local part = redis.call('HMGET', KEYS[1], unpack(found, at, math.min(at + most - 1, #found)))
    for number, value in ipairs(part) do values[at + number - 1] = value end
  end
  rows[range], rows[range + 1] = found, values
end
return rows
""".replace("IN_ORDER", _IN_ORDER)
)
