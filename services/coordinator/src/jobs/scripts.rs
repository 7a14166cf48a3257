//! What happens to a job, each in one step: Redis runs a script as a whole or not at all.
//!
//! A job has a fence, a number that grows with each coordinator that takes it up and with its being cancelled. Whoever
//! writes shows the fence that it was given; an owner that was thought dead finds its own outdated and has no say any
//! more. So a job ends once.

use redis::Script;
use std::sync::LazyLock;

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)+) => {
        $($(#[$doc])* pub(super) static $name: LazyLock<Script> = LazyLock::new(|| Script::new($code));)+
    };
}

scripts! {
    /// KEYS: job, queue, list. ARGV: id, tenant, spec, digest, member of the list, most jobs, TTL of the list in ms.
    SUBMIT = r"
        local digest = redis.call('HGET', KEYS[1], 'digest')
        if digest then return digest == ARGV[4] and 'again' or 'other' end
        if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[6]) then return 'full' end
        local entry = redis.call('XADD', KEYS[2], '*', 'job', ARGV[1])
        redis.call('HSET', KEYS[1], 'tenant', ARGV[2], 'spec', ARGV[3], 'digest', ARGV[4], 'state', 'QUEUED',
            'entry', entry, 'fence', 0, 'attempts', 0, 'stalled', 0, 'version', 1)
        redis.call('ZADD', KEYS[3], 0, ARGV[5])
        redis.call('PEXPIRE', KEYS[3], ARGV[7])
        return 'new'";

    /// A coordinator takes a job up that the queue gave it. Entries of jobs that have ended or gone are cleared away.
    ///
    /// KEYS: job, queue. ARGV: entry, group, now in ms.
    BEGIN = r"
        local state = redis.call('HGET', KEYS[1], 'state')
        local is_open = state == 'QUEUED' or state == 'RUNNING'
        if not is_open or redis.call('HGET', KEYS[1], 'entry') ~= ARGV[1] then
            redis.call('XACK', KEYS[2], ARGV[2], ARGV[1])
            redis.call('XDEL', KEYS[2], ARGV[1])
            return {}
        end
        redis.call('HSET', KEYS[1], 'state', 'RUNNING')
        redis.call('HSETNX', KEYS[1], 'started', ARGV[3])
        redis.call('HINCRBY', KEYS[1], 'attempts', 1)
        redis.call('HINCRBY', KEYS[1], 'version', 1)
        return {redis.call('HINCRBY', KEYS[1], 'fence', 1), redis.call('HINCRBY', KEYS[1], 'stalled', 1)}";

    /// The owner is still at it, and has this to save. It has got on where it has, or where it did a step that none
    /// before did.
    ///
    /// KEYS: job, queue, work. ARGV: fence, group, consumer, steps done, images done, number of names of useless pieces,
    /// these, then names and values of new pieces.
    SAVE = r"
        if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
        local entry = redis.call('HGET', KEYS[1], 'entry')
        redis.pcall('XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, entry, 'JUSTID')
        local first = 7 + tonumber(ARGV[6])
        for i = 7, first - 1 do redis.call('HDEL', KEYS[3], ARGV[i]) end
        for i = first, #ARGV, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
        local furthest = tonumber(redis.call('HGET', KEYS[1], 'furthest') or 0)
        if #ARGV >= first or tonumber(ARGV[4]) > furthest then redis.call('HSET', KEYS[1], 'stalled', 0) end
        redis.call('HSET', KEYS[1], 'furthest', math.max(furthest, tonumber(ARGV[4])))
        local news = redis.call('HGET', KEYS[1], 'steps') ~= ARGV[4] or redis.call('HGET', KEYS[1], 'images') ~= ARGV[5]
        redis.call('HSET', KEYS[1], 'steps', ARGV[4], 'images', ARGV[5])
        if news then redis.call('HINCRBY', KEYS[1], 'version', 1) end
        return 1";

    /// KEYS: job, queue, work, list. ARGV: fence, group, state, end, now in ms, TTL in ms.
    END = r"
        if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
        redis.call('HSET', KEYS[1], 'state', ARGV[3], 'end', ARGV[4], 'ended', ARGV[5])
        redis.call('HINCRBY', KEYS[1], 'fence', 1)
        redis.call('HINCRBY', KEYS[1], 'version', 1)
        local entry = redis.call('HGET', KEYS[1], 'entry')
        redis.pcall('XACK', KEYS[2], ARGV[2], entry)
        redis.call('XDEL', KEYS[2], entry)
        for _, name in ipairs(redis.call('HKEYS', KEYS[3])) do
            if not string.match(name, ':image$') then redis.call('HDEL', KEYS[3], name) end
        end
        for _, i in ipairs({1, 3, 4}) do redis.call('PEXPIRE', KEYS[i], ARGV[6]) end
        return 1";

    /// The owner lets go of a job that others may have at once.
    ///
    /// KEYS: job, queue. ARGV: fence, group, consumer, lease in ms.
    RELEASE = r"
        if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
        redis.call('HSET', KEYS[1], 'state', 'QUEUED')
        redis.call('HINCRBY', KEYS[1], 'fence', 1)
        redis.call('HINCRBY', KEYS[1], 'stalled', -1)
        redis.call('HINCRBY', KEYS[1], 'version', 1)
        local entry = redis.call('HGET', KEYS[1], 'entry')
        redis.pcall('XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, entry, 'IDLE', ARGV[4], 'JUSTID')
        return 1";

    /// KEYS: job, queue, work, list. ARGV: group, end, now in ms, TTL in ms.
    CANCEL = r"
        local state = redis.call('HGET', KEYS[1], 'state')
        if state ~= 'QUEUED' and state ~= 'RUNNING' then return 0 end
        redis.call('HSET', KEYS[1], 'state', 'CANCELLED', 'end', ARGV[2], 'ended', ARGV[3])
        redis.call('HINCRBY', KEYS[1], 'fence', 1)
        redis.call('HINCRBY', KEYS[1], 'version', 1)
        local entry = redis.call('HGET', KEYS[1], 'entry')
        redis.pcall('XACK', KEYS[2], ARGV[1], entry)
        redis.call('XDEL', KEYS[2], entry)
        for _, name in ipairs(redis.call('HKEYS', KEYS[3])) do
            if not string.match(name, ':image$') then redis.call('HDEL', KEYS[3], name) end
        end
        for _, i in ipairs({1, 3, 4}) do redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
        return 1";

    /// Consumers that have nothing go from the group: the one that is leaving, and those that were not heard of for long.
    ///
    /// KEYS: queue. ARGV: group, the one that is leaving or nothing, how long in ms.
    TIDY = r"
        for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
            local is = {}
            for i = 1, #consumer, 2 do is[consumer[i]] = consumer[i + 1] end
            if is.pending == 0 and (is.name == ARGV[2] or is.idle >= tonumber(ARGV[3])) then
                redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], is.name)
            end
        end
        return 1";
}
