-- What holds for every run at any moment, whatever died: each statement lists the offences, so it must list nothing.
-- `company doctor --deep` reads them to operators, and the fault tests to themselves; psql runs this file as it is.

-- name: ended | A run has an end exactly when its status is one of the ends.
SELECT id AS run_id, status, ended_at FROM project_runs
WHERE (ended_at IS NULL) <> (status IN ('QUEUED', 'RUNNING', 'PAUSED', 'WAITING'));

-- name: claimable | A run in the queue or on hold has all of its claims left, and nobody holds it.
SELECT id AS run_id, status, claims, lease_owner FROM project_runs
WHERE status IN ('QUEUED', 'PAUSED', 'WAITING') AND (claims > 0 OR lease_owner IS NOT NULL);

-- name: stuck | No run waits for something that will not come.
SELECT run_id, status, why FROM v_stuck_runs;

-- name: let-go | A run that has ended holds no tokens, no money and no lease.
SELECT id AS run_id, reserved_tokens, reserved_usd, lease_owner FROM project_runs
WHERE ended_at IS NOT NULL AND (reserved_tokens > 0 OR reserved_usd > 0 OR lease_owner IS NOT NULL);

-- name: answerable | Nobody is asked by a run that has ended.
SELECT q.run_id, q.id AS question_id, q.key, r.status FROM questions q JOIN project_runs r ON r.id = q.run_id
WHERE q.status = 'OPEN' AND r.ended_at IS NOT NULL;

-- name: active | A project names the run that is on its way, and no other.
SELECT p.id AS project_id, p.active_run_id, r.id AS run_id, r.status
FROM projects p JOIN project_runs r ON r.project_id = p.id
WHERE (r.ended_at IS NULL) <> (p.active_run_id IS NOT DISTINCT FROM r.id);

-- name: buried | A run that was given up as poisoned lies in the dead letters.
SELECT id AS run_id FROM project_runs r
WHERE status = 'FAILED' AND stop_reason = 'poisoned' AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.run_id = r.id);

-- name: visits | A visit of a node is committed once.
SELECT run_id, payload ->> 'node' AS node, payload ->> 'visit' AS visit, count(*) AS times FROM events
WHERE type = 'node.finished' AND payload ? 'visit'
GROUP BY 1, 2, 3 HAVING count(*) > 1;

-- name: comments | A visit of a node says the same thing once.
SELECT run_id, node, visit, author_name, min(body) AS body, count(*) AS times FROM task_comments WHERE node IS NOT NULL
GROUP BY run_id, node, visit, task_id, author_name, comment_type, md5(body) HAVING count(*) > 1;

-- name: replies | A call of a visit has one reply that counts.
SELECT run_id, node, visit, ordinal, count(*) AS times FROM model_calls WHERE status = 'done' AND replayable
GROUP BY run_id, node, visit, ordinal HAVING count(*) > 1;

-- name: totals | What a run and its roles have spent and hold is the sum of their calls.
SELECT run_id, total_of, unit, booked, summed FROM v_ledger_check;

-- name: project-totals | What a project has spent is the sum of its runs.
SELECT p.id AS project_id, p.spent_usd AS booked, coalesce(sum(r.spent_usd), 0) AS summed
FROM projects p LEFT JOIN project_runs r ON r.project_id = p.id
GROUP BY p.id HAVING p.spent_usd <> coalesce(sum(r.spent_usd), 0);

-- name: run-limits | No run spends and holds more than its limits, unless a provider billed more than it was asked for.
SELECT id AS run_id, spent_tokens_input + spent_tokens_output + reserved_tokens AS tokens, limit_tokens,
    spent_usd + reserved_usd AS usd, limit_usd
FROM project_runs r
WHERE (spent_tokens_input + spent_tokens_output + reserved_tokens > limit_tokens OR spent_usd + reserved_usd > limit_usd)
    AND NOT EXISTS (SELECT FROM events e WHERE e.run_id = r.id AND e.type = 'budget.excess_billed');

-- name: role-limits | No role of a run spends and holds more than its limits, unless a provider billed more than asked.
SELECT owner_id AS run_id, name AS role, spent_tokens + reserved_tokens AS tokens, limit_tokens,
    spent_usd + reserved_usd AS usd, limit_usd, spent_seconds + reserved_seconds AS seconds, limit_seconds
FROM budgets b
WHERE scope = 'run_role' AND (spent_seconds + reserved_seconds > limit_seconds
    OR ((spent_tokens + reserved_tokens > limit_tokens OR spent_usd + reserved_usd > limit_usd)
        AND NOT EXISTS (SELECT FROM events e WHERE e.run_id = b.owner_id AND e.type = 'budget.excess_billed')));

-- Limits of projects and months may be lowered below what is spent already; nothing may be held then.
-- name: shared-limits | Nothing is held beyond the limits of a project or of a month of a tenant.
SELECT scope, owner_id, name, spent_tokens + reserved_tokens AS tokens, limit_tokens,
    spent_usd + reserved_usd AS usd, limit_usd, spent_seconds + reserved_seconds AS seconds, limit_seconds
FROM budgets
WHERE scope <> 'run_role' AND ((reserved_seconds > 0 AND spent_seconds + reserved_seconds > limit_seconds)
    OR (reserved_tokens > 0 AND spent_tokens + reserved_tokens > limit_tokens)
    OR (reserved_usd > 0 AND spent_usd + reserved_usd > limit_usd));

-- name: granted | Only a run that a worker holds is granted time: it goes back with the lease.
SELECT id AS run_id, status, lease_owner, granted_at, granted_until, granted_budgets FROM project_runs
WHERE granted_until IS NOT NULL AND (status <> 'RUNNING' OR lease_owner IS NULL);

-- name: held-seconds | The time that a project or a month holds is what their runs are granted.
SELECT b.scope, b.owner_id, b.name, b.reserved_seconds AS booked, coalesce(g.seconds, 0) AS summed
FROM budgets b LEFT JOIN (
    SELECT budget_id, sum(extract(epoch FROM granted_until - granted_at)) AS seconds
    FROM project_runs, unnest(granted_budgets) budget_id GROUP BY budget_id
) g ON g.budget_id = b.id
WHERE b.scope <> 'run_role' AND b.reserved_seconds <> coalesce(g.seconds, 0);

-- name: numbers | The events of a run are numbered from 1 without gaps, up to the number that the run knows.
SELECT r.id AS run_id, r.event_seq, count(e.seq) AS events, min(e.seq) AS first, max(e.seq) AS last
FROM project_runs r LEFT JOIN events e ON e.run_id = r.id
GROUP BY r.id
HAVING r.event_seq <> count(e.seq) OR r.event_seq <> coalesce(max(e.seq), 0) OR min(e.seq) <> 1;

-- name: moves | A run goes only from status to status as its life cycle allows.
WITH told AS (
    SELECT run_id, seq, type, CASE
        WHEN type IN ('run.created', 'run.retry_requested') THEN 'QUEUED'
        WHEN type IN ('run.started', 'run.resumed') THEN 'RUNNING'
        ELSE upper(substr(type, 5)) END AS became
    FROM events
    WHERE type IN ('run.created', 'run.started', 'run.resumed', 'run.paused', 'run.waiting', 'run.completed',
        'run.failed', 'run.stopped_budget', 'run.stopped_security', 'run.stopped_user', 'run.retry_requested')
), moves AS (
    SELECT *, lag(seq, 1, 0::bigint) OVER ran AS since, lag(became, 1, 'QUEUED') OVER ran AS was
    FROM told WINDOW ran AS (PARTITION BY run_id ORDER BY seq)
)
SELECT run_id, seq, type, was, became FROM moves
WHERE NOT (type = 'run.created' AND since = 0)
    AND (was, became) NOT IN (
        ('QUEUED', 'RUNNING'), ('QUEUED', 'STOPPED_USER'),
        ('RUNNING', 'RUNNING'), ('RUNNING', 'PAUSED'), ('RUNNING', 'WAITING'), ('RUNNING', 'COMPLETED'),
        ('RUNNING', 'FAILED'), ('RUNNING', 'STOPPED_BUDGET'), ('RUNNING', 'STOPPED_SECURITY'),
        ('RUNNING', 'STOPPED_USER'),
        ('PAUSED', 'STOPPED_USER'), ('WAITING', 'STOPPED_USER'),
        ('FAILED', 'QUEUED'), ('STOPPED_BUDGET', 'QUEUED'), ('STOPPED_SECURITY', 'QUEUED'), ('STOPPED_USER', 'QUEUED'))
    -- A run on hold goes back into the queue by what somebody said, and from there to a worker.
    AND NOT (was IN ('PAUSED', 'WAITING') AND became = 'RUNNING' AND EXISTS (
        SELECT FROM events e WHERE e.run_id = moves.run_id AND e.seq > moves.since AND e.seq < moves.seq
            AND e.type IN ('run.resume_requested', 'question.answered', 'question.expired')));

-- name: end-told | The last that the events of a run tell of its end is its status.
SELECT r.id AS run_id, r.status, e.type AS told FROM project_runs r
CROSS JOIN LATERAL (
    SELECT type FROM events WHERE run_id = r.id AND type IN ('run.created', 'run.started', 'run.resumed', 'run.completed',
        'run.failed', 'run.stopped_budget', 'run.stopped_security', 'run.stopped_user', 'run.retry_requested')
    ORDER BY seq DESC LIMIT 1
) e
WHERE CASE WHEN r.ended_at IS NULL THEN e.type NOT IN ('run.created', 'run.started', 'run.resumed', 'run.retry_requested')
    ELSE e.type <> 'run.' || lower(r.status) END;

-- name: task-moves | A task goes on from the status that it had, and stands where its last event says.
WITH told AS (
    SELECT run_id, seq, payload ->> 'key' AS key, payload ->> 'from' AS said,
        coalesce(payload ->> 'to', payload ->> 'status') AS became
    FROM events WHERE type IN ('task.created', 'task.moved')
), moves AS (
    SELECT *, lag(became) OVER took AS was, lead(seq) OVER took IS NULL AS last
    FROM told WINDOW took AS (PARTITION BY run_id, key ORDER BY seq)
)
SELECT m.run_id, m.key, m.seq, m.was, m.said, m.became, t.status
FROM moves m LEFT JOIN tasks t ON t.run_id = m.run_id AND t.key = m.key
WHERE (m.was IS NOT NULL AND m.said IS DISTINCT FROM m.was) OR (m.last AND t.status IS DISTINCT FROM m.became);

-- name: epochs | Each claim of a run has an epoch above all earlier ones.
WITH claims AS (
    SELECT run_id, seq, (payload ->> 'epoch')::bigint AS epoch,
        max((payload ->> 'epoch')::bigint) OVER (
            PARTITION BY run_id ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
    FROM events WHERE type IN ('run.started', 'run.resumed')
)
SELECT c.run_id, c.seq, c.before, c.epoch, r.lease_epoch FROM claims c JOIN project_runs r ON r.id = c.run_id
WHERE c.epoch <= c.before OR c.epoch > r.lease_epoch;

-- What a worker records under its fence names its process, and so does each claim; the numbers of events tell their order.
-- name: fenced | What a worker records of a run comes from the worker that claimed it last.
WITH told AS (
    SELECT run_id, seq, type, instance, payload ->> 'owner' AS owner,
        count(*) FILTER (WHERE type IN ('run.started', 'run.resumed')) OVER (PARTITION BY run_id ORDER BY seq) AS claim
    FROM events
    WHERE type IN ('run.started', 'run.resumed') OR (source = 'engine' AND type IN ('node.finished', 'model.called',
        'command.finished', 'commit.created', 'gate.decided', 'comment.added', 'task.created', 'task.moved'))
)
SELECT t.run_id, t.seq, t.type, t.instance, c.owner
FROM told t JOIN told c ON c.run_id = t.run_id AND c.claim = t.claim AND c.type IN ('run.started', 'run.resumed')
WHERE t.type NOT IN ('run.started', 'run.resumed') AND t.instance <> c.owner;

-- name: begun | No call was begun under a lease that nobody had.
SELECT c.run_id, c.id AS call_id, c.lease_epoch, r.lease_epoch AS now_at
FROM model_calls c JOIN project_runs r ON r.id = c.run_id WHERE c.lease_epoch > r.lease_epoch;

-- name: reservations | What is held for a call belongs to the lease that drives its run now.
SELECT c.run_id, c.id AS call_id, c.lease_epoch, r.lease_epoch AS now_at, r.status
FROM model_calls c JOIN project_runs r ON r.id = c.run_id
WHERE c.status = 'reserved' AND (c.lease_epoch <> r.lease_epoch OR r.ended_at IS NOT NULL);

-- name: prompts | Each prompt that a run is pinned to is kept, and its text is what its hash says.
WITH kept AS MATERIALIZED (
    SELECT sha256, sha256 = encode(sha256(convert_to(text, 'UTF8')), 'hex') AS whole FROM prompts
)
SELECT r.id AS run_id, pin.key AS prompt, pin.value AS sha256, CASE WHEN kept.whole IS NULL THEN 'none' ELSE 'another' END AS kept
FROM project_runs r CROSS JOIN LATERAL jsonb_each_text(r.prompts) pin LEFT JOIN kept ON kept.sha256 = pin.value
WHERE kept.whole IS NOT TRUE;
