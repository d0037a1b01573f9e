-- What must hold for every run after every fault: each statement lists the offences.

SELECT id, status FROM project_runs
WHERE ended_at IS NULL AND status NOT IN ('QUEUED', 'RUNNING', 'PAUSED', 'WAITING');

SELECT run_id, key FROM tasks GROUP BY run_id, key HAVING count(*) > 1;

SELECT run_id, node, visit, body FROM task_comments GROUP BY run_id, node, visit, body HAVING count(*) > 1;

SELECT run_id, node, visit, ordinal FROM model_calls WHERE status = 'done'
GROUP BY run_id, node, visit, ordinal HAVING count(*) > 1;

SELECT * FROM v_ledger_check;

SELECT id FROM project_runs
WHERE spent_tokens_input + spent_tokens_output + reserved_tokens > limit_tokens OR spent_usd + reserved_usd > limit_usd;

SELECT run_id FROM events WHERE run_id IS NOT NULL
GROUP BY run_id HAVING min(seq) <> 1 OR max(seq) <> count(*);

SELECT r.id FROM project_runs r JOIN (SELECT run_id, max(seq) AS last FROM events GROUP BY run_id) e ON e.run_id = r.id
WHERE r.event_seq <> e.last;

SELECT id FROM project_runs WHERE ended_at IS NOT NULL AND (reserved_tokens > 0 OR lease_owner IS NOT NULL);

-- A run ends once, and once more for each time that somebody retries it.
SELECT run_id FROM events
GROUP BY run_id
HAVING count(*) FILTER (
    WHERE type IN ('run.completed', 'run.failed', 'run.stopped_budget', 'run.stopped_security', 'run.stopped_user')
) > 1 + count(*) FILTER (WHERE type = 'run.retry_requested');

SELECT p.id FROM projects p JOIN project_runs r ON r.project_id = p.id
WHERE r.ended_at IS NOT NULL AND p.active_run_id = r.id;

-- Budgets beside the run's own: of roles, projects and months of tenants.
SELECT id FROM budgets
WHERE spent_tokens + reserved_tokens > limit_tokens OR spent_usd + reserved_usd > limit_usd;

-- A reservation belongs to the lease that drives the run now.
SELECT c.id FROM model_calls c JOIN project_runs r ON r.id = c.run_id
WHERE c.status = 'reserved' AND (c.lease_epoch <> r.lease_epoch OR r.ended_at IS NOT NULL);
