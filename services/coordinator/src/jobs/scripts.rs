//! What happens to a job, each in one step: nothing else happens in Redis while a script runs.
//!
//! A job has a fence, a number that grows with each coordinator that takes it up and with its being cancelled. Whoever
//! writes shows the fence that it was given; an owner that was thought dead finds its own outdated and has no say any
//! more. So a job ends once.
//!
//! A Redis that is full takes no new jobs, but goes on with those that it has: what ends them makes room.

use redis::Script;
use std::sync::LazyLock;

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $flags:literal, $code:literal;)+) => {
        $($(#[$doc])* pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!("#!lua", $flags, "\n", $code)));)+
    };
}

scripts! {
    /// The job is kept for so long should nobody ever take it up. A tenant may have as many open jobs as are left free, so
    /// that one of them never takes all room. Of its list the oldest go whose jobs are gone.
    ///
    /// KEYS: job, queue, list, open jobs by tenant. ARGV: id, tenant, spec, digest, member of the list, most jobs, TTL in ms
    /// of what has not ended.
    SUBMIT = "", r"
        local digest = redis.call('HGET', KEYS[1], 'digest')
        if digest then return digest == ARGV[4] and 'again' or 'other' end
        local own = tonumber(redis.call('HGET', KEYS[4], ARGV[2]) or 0)
        if own >= tonumber(ARGV[6]) - redis.call('XLEN', KEYS[2]) then return 'full' end
        local entry = redis.call('XADD', KEYS[2], '*', 'job', ARGV[1], 'tenant', ARGV[2])
        redis.call('HINCRBY', KEYS[4], ARGV[2], 1)
        redis.call('HSET', KEYS[1], 'tenant', ARGV[2], 'spec', ARGV[3], 'digest', ARGV[4], 'state', 'QUEUED',
            'entry', entry, 'fence', 0, 'attempts', 0, 'stalled', 0)
        for _, member in ipairs(redis.call('ZRANGE', KEYS[3], 0, 7)) do
            local id = string.match(member, '-(.*)')
            if redis.call('EXISTS', 'sdxl:job:' .. id) == 0 then redis.call('ZREM', KEYS[3], member) end
        end
        redis.call('ZADD', KEYS[3], 0, ARGV[5])
        redis.call('PEXPIRE', KEYS[1], ARGV[7])
        redis.call('PEXPIRE', KEYS[3], ARGV[7])
        return 'new'";

    /// A coordinator takes a job up that the queue gave it. Entries of jobs that have ended or gone are cleared away.
    ///
    /// KEYS: job, queue, work, list, open jobs by tenant. ARGV: entry, group, tenant, now in ms, TTL in ms of what has not
    /// ended.
    BEGIN = " flags=allow-oom", r"
        local state = redis.call('HGET', KEYS[1], 'state')
        local is_open = state == 'QUEUED' or state == 'RUNNING'
        if not is_open or redis.call('HGET', KEYS[1], 'entry') ~= ARGV[1] then
            redis.call('XACK', KEYS[2], ARGV[2], ARGV[1])
            if redis.call('XDEL', KEYS[2], ARGV[1]) == 1 and redis.call('HINCRBY', KEYS[5], ARGV[3], -1) <= 0 then
                redis.call('HDEL', KEYS[5], ARGV[3])
            end
            if not state then redis.call('DEL', KEYS[3]) end
            return {}
        end
        redis.call('HSET', KEYS[1], 'state', 'RUNNING')
        redis.call('HSETNX', KEYS[1], 'started', ARGV[4])
        redis.call('HINCRBY', KEYS[1], 'attempts', 1)
        for _, i in ipairs({1, 3, 4}) do redis.call('PEXPIRE', KEYS[i], ARGV[5]) end
        return {redis.call('HINCRBY', KEYS[1], 'fence', 1), redis.call('HINCRBY', KEYS[1], 'stalled', 1)}";

    /// The owner is still at it, and has this to save. It has got on where it has, or where it did a step that none
    /// before did.
    ///
    /// KEYS: job, queue, work, list. ARGV: fence, group, consumer, TTL in ms of what has not ended, steps done, images done,
    /// number of names of useless pieces, these, then names and values of new pieces.
    SAVE = " flags=allow-oom", r"
        if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
        local entry = redis.call('HGET', KEYS[1], 'entry')
        redis.pcall('XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, entry, 'JUSTID')
        local first = 8 + tonumber(ARGV[7])
        for i = 8, first - 1 do redis.call('HDEL', KEYS[3], ARGV[i]) end
        for i = first, #ARGV, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
        local furthest = tonumber(redis.call('HGET', KEYS[1], 'furthest') or 0)
        if #ARGV >= first or tonumber(ARGV[5]) > furthest then redis.call('HSET', KEYS[1], 'stalled', 0) end
        redis.call('HSET', KEYS[1], 'furthest', math.max(furthest, tonumber(ARGV[5])), 'steps', ARGV[5], 'images', ARGV[6])
        for _, i in ipairs({1, 3, 4}) do redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
        return 1";

    /// The job ends: by its owner, who shows the fence, or because it is cancelled, whoever has it.
    ///
    /// KEYS: job, queue, work, list, open jobs by tenant. ARGV: fence or nothing, group, tenant, state, end, now in ms, TTL in
    /// ms.
    END = " flags=allow-oom", r"
        local state = redis.call('HGET', KEYS[1], 'state')
        if state ~= 'QUEUED' and state ~= 'RUNNING' then return 0 end
        if ARGV[1] ~= '' and redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
        redis.call('HSET', KEYS[1], 'state', ARGV[4], 'end', ARGV[5], 'ended', ARGV[6])
        redis.call('HINCRBY', KEYS[1], 'fence', 1)
        local entry = redis.call('HGET', KEYS[1], 'entry')
        redis.pcall('XACK', KEYS[2], ARGV[2], entry)
        if redis.call('XDEL', KEYS[2], entry) == 1 and redis.call('HINCRBY', KEYS[5], ARGV[3], -1) <= 0 then
            redis.call('HDEL', KEYS[5], ARGV[3])
        end
        for _, name in ipairs(redis.call('HKEYS', KEYS[3])) do
            if not string.match(name, ':image$') then redis.call('HDEL', KEYS[3], name) end
        end
        for _, i in ipairs({1, 3}) do redis.call('PEXPIRE', KEYS[i], ARGV[7]) end
        if redis.call('PTTL', KEYS[4]) < tonumber(ARGV[7]) or not redis.call('HGET', KEYS[5], ARGV[3]) then
            redis.call('PEXPIRE', KEYS[4], ARGV[7])
        end
        return 1";

    /// The owner lets go of a job that others may have at once.
    ///
    /// KEYS: job, queue. ARGV: fence, group, consumer, lease in ms.
    RELEASE = " flags=allow-oom", r"
        if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
        redis.call('HSET', KEYS[1], 'state', 'QUEUED')
        redis.call('HINCRBY', KEYS[1], 'fence', 1)
        redis.call('HINCRBY', KEYS[1], 'stalled', -1)
        local entry = redis.call('HGET', KEYS[1], 'entry')
        redis.pcall('XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, entry, 'IDLE', ARGV[4], 'JUSTID')
        return 1";

    /// Consumers that have nothing go from the group: the one that is leaving, and those that were not heard of for long.
    ///
    /// KEYS: queue. ARGV: group, the one that is leaving or nothing, how long in ms.
    TIDY = " flags=allow-oom", r"
        for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
            local is = {}
            for i = 1, #consumer, 2 do is[consumer[i]] = consumer[i + 1] end
            if is.pending == 0 and (is.name == ARGV[2] or is.idle >= tonumber(ARGV[3])) then
                redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], is.name)
            end
        end
        return 1";
}
