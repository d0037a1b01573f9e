-- Views for people: open them in pgAdmin or psql and read.

CREATE VIEW v_run_overview AS
SELECT run.id AS run_id, project.name AS project, run.number, run.status, run.requested, run.stop_reason,
    run.current_node, run.progress, run.spent_usd, run.limit_usd,
    run.spent_tokens_input + run.spent_tokens_output AS spent_tokens, run.limit_tokens,
    round(run.spent_seconds, 1) AS spent_seconds,
    (SELECT count(*) FROM tasks WHERE tasks.run_id = run.id AND tasks.status = 'DONE') AS tasks_done,
    (SELECT count(*) FROM tasks WHERE tasks.run_id = run.id) AS tasks_all,
    (SELECT count(*) FROM findings WHERE findings.run_id = run.id AND findings.status = 'open') AS open_findings,
    (SELECT count(*) FROM questions WHERE questions.run_id = run.id AND questions.status = 'OPEN') AS open_questions,
    run.lease_owner, date_trunc('second', run.lease_expires_at - now()) AS lease_left,
    run.error, run.created_at, run.started_at, run.ended_at
FROM project_runs run JOIN projects project ON project.id = run.project_id
ORDER BY run.created_at DESC;
COMMENT ON VIEW v_run_overview IS 'A row a run, newest first: where it stands, what it spent, what is open';
COMMENT ON COLUMN v_run_overview.run_id IS 'Id of the run';
COMMENT ON COLUMN v_run_overview.project IS 'Name of its project';
COMMENT ON COLUMN v_run_overview.number IS 'Counts from 1 within the project';
COMMENT ON COLUMN v_run_overview.status IS 'Where it stands';
COMMENT ON COLUMN v_run_overview.requested IS 'What somebody asked of it: none, pause, stop';
COMMENT ON COLUMN v_run_overview.stop_reason IS 'Code of why it ended or holds';
COMMENT ON COLUMN v_run_overview.current_node IS 'Node committed last or running now';
COMMENT ON COLUMN v_run_overview.progress IS 'Per cent, as the graph reports it';
COMMENT ON COLUMN v_run_overview.spent_usd IS 'Billed money';
COMMENT ON COLUMN v_run_overview.limit_usd IS 'Most money; empty: no limit';
COMMENT ON COLUMN v_run_overview.spent_tokens IS 'Billed tokens, input and output';
COMMENT ON COLUMN v_run_overview.limit_tokens IS 'Most tokens; empty: no limit';
COMMENT ON COLUMN v_run_overview.spent_seconds IS 'Seconds of work, pauses left out';
COMMENT ON COLUMN v_run_overview.tasks_done IS 'Tasks that are done';
COMMENT ON COLUMN v_run_overview.tasks_all IS 'All tasks';
COMMENT ON COLUMN v_run_overview.open_findings IS 'Findings that are neither fixed nor waived';
COMMENT ON COLUMN v_run_overview.open_questions IS 'Questions that nobody answered yet';
COMMENT ON COLUMN v_run_overview.lease_owner IS 'Worker that drives it';
COMMENT ON COLUMN v_run_overview.lease_left IS 'Time until another worker may take it; negative: it may be taken';
COMMENT ON COLUMN v_run_overview.error IS 'What went wrong and what to do';
COMMENT ON COLUMN v_run_overview.created_at IS 'When it was asked for (UTC)';
COMMENT ON COLUMN v_run_overview.started_at IS 'When it was first claimed (UTC)';
COMMENT ON COLUMN v_run_overview.ended_at IS 'When it ended (UTC)';

CREATE VIEW v_run_timeline AS
SELECT run_id, occurred_at AS at, seq, 'event' AS entry, type AS what, source AS who,
    coalesce(payload ->> 'message', payload::text) AS says
FROM events WHERE run_id IS NOT NULL AND type <> 'comment.added'
UNION ALL
SELECT run_id, created_at, NULL, 'comment', comment_type, author_name, body FROM task_comments
ORDER BY 1, 2, 3 NULLS FIRST;
COMMENT ON VIEW v_run_timeline IS 'Events and comments of every run, in the order in which they happened';
COMMENT ON COLUMN v_run_timeline.run_id IS 'Id of the run';
COMMENT ON COLUMN v_run_timeline.at IS 'When it happened (UTC)';
COMMENT ON COLUMN v_run_timeline.seq IS 'Number of the event; empty for comments';
COMMENT ON COLUMN v_run_timeline.entry IS 'event or comment';
COMMENT ON COLUMN v_run_timeline.what IS 'Type of the event or of the comment';
COMMENT ON COLUMN v_run_timeline.who IS 'Part, role or person that tells';
COMMENT ON COLUMN v_run_timeline.says IS 'The comment, or the facts of the event';

CREATE VIEW v_cost_by_role AS
SELECT run_id, role, model, count(*) FILTER (WHERE status IN ('done', 'failed')) AS calls,
    sum(tokens_input) AS tokens_input, sum(tokens_output) AS tokens_output, sum(tokens_cached) AS tokens_cached,
    sum(cost_usd) AS cost_usd, coalesce(sum(reserved_usd) FILTER (WHERE status = 'reserved'), 0) AS held_usd
FROM model_calls GROUP BY run_id, role, model ORDER BY run_id, cost_usd DESC;
COMMENT ON VIEW v_cost_by_role IS 'What each role of each run spent, by model';
COMMENT ON COLUMN v_cost_by_role.run_id IS 'Id of the run';
COMMENT ON COLUMN v_cost_by_role.role IS 'Role that asked';
COMMENT ON COLUMN v_cost_by_role.model IS 'Model that was asked';
COMMENT ON COLUMN v_cost_by_role.calls IS 'Settled attempts';
COMMENT ON COLUMN v_cost_by_role.tokens_input IS 'Billed input tokens';
COMMENT ON COLUMN v_cost_by_role.tokens_output IS 'Billed output tokens';
COMMENT ON COLUMN v_cost_by_role.tokens_cached IS 'Of the input: cached';
COMMENT ON COLUMN v_cost_by_role.cost_usd IS 'Billed money';
COMMENT ON COLUMN v_cost_by_role.held_usd IS 'Held for calls in flight';

CREATE VIEW v_cost_by_node_visit AS
SELECT run_id, node, visit, task_key, count(*) FILTER (WHERE status IN ('done', 'failed')) AS calls,
    sum(tokens_input) AS tokens_input, sum(tokens_output) AS tokens_output, sum(cost_usd) AS cost_usd,
    sum(latency_ms) AS waited_ms, min(created_at) AS began_at
FROM model_calls GROUP BY run_id, node, visit, task_key ORDER BY run_id, began_at;
COMMENT ON VIEW v_cost_by_node_visit IS 'What each visit of each node spent, in order';
COMMENT ON COLUMN v_cost_by_node_visit.run_id IS 'Id of the run';
COMMENT ON COLUMN v_cost_by_node_visit.node IS 'Node that asked';
COMMENT ON COLUMN v_cost_by_node_visit.visit IS 'Which visit of the node';
COMMENT ON COLUMN v_cost_by_node_visit.task_key IS 'Task it worked on';
COMMENT ON COLUMN v_cost_by_node_visit.calls IS 'Settled attempts';
COMMENT ON COLUMN v_cost_by_node_visit.tokens_input IS 'Billed input tokens';
COMMENT ON COLUMN v_cost_by_node_visit.tokens_output IS 'Billed output tokens';
COMMENT ON COLUMN v_cost_by_node_visit.cost_usd IS 'Billed money';
COMMENT ON COLUMN v_cost_by_node_visit.waited_ms IS 'Milliseconds spent waiting for models';
COMMENT ON COLUMN v_cost_by_node_visit.began_at IS 'When it first asked (UTC)';

CREATE VIEW v_budget_burn AS
SELECT limits.scope, limits.owner_id, limits.name, unit.name AS unit, unit.spent, unit.held, unit.most,
    round((unit.spent + unit.held) / unit.most, 4) AS share
FROM (
    SELECT 'run' AS scope, id AS owner_id, 'all' AS name,
        spent_tokens_input + spent_tokens_output AS spent_tokens, reserved_tokens, limit_tokens,
        spent_usd, reserved_usd, limit_usd, spent_seconds, limit_seconds
    FROM project_runs
    UNION ALL
    SELECT scope, owner_id, name, spent_tokens, reserved_tokens, limit_tokens, spent_usd, reserved_usd, limit_usd,
        NULL, NULL
    FROM budgets
) limits
CROSS JOIN LATERAL (VALUES
    ('tokens', limits.spent_tokens::numeric, limits.reserved_tokens::numeric, limits.limit_tokens::numeric),
    ('usd', limits.spent_usd, limits.reserved_usd, limits.limit_usd),
    ('seconds', limits.spent_seconds, 0, limits.limit_seconds::numeric)
) unit (name, spent, held, most)
WHERE unit.most IS NOT NULL
ORDER BY share DESC;
COMMENT ON VIEW v_budget_burn IS 'A row for every limit, the one nearest to its end first';
COMMENT ON COLUMN v_budget_burn.scope IS 'run, run_role, project or tenant_month';
COMMENT ON COLUMN v_budget_burn.owner_id IS 'Run, project or tenant';
COMMENT ON COLUMN v_budget_burn.name IS 'all, a role, or the month';
COMMENT ON COLUMN v_budget_burn.unit IS 'tokens, usd or seconds';
COMMENT ON COLUMN v_budget_burn.spent IS 'Used so far';
COMMENT ON COLUMN v_budget_burn.held IS 'Held for calls in flight';
COMMENT ON COLUMN v_budget_burn.most IS 'The limit';
COMMENT ON COLUMN v_budget_burn.share IS 'Used and held, as a share of the limit';

CREATE VIEW v_task_tree AS
WITH RECURSIVE tree AS (
    SELECT tasks.*, 0 AS depth, ARRAY[created_at::text || id::text] AS place FROM tasks WHERE parent_task_id IS NULL
    UNION ALL
    SELECT tasks.*, tree.depth + 1, tree.place || (tasks.created_at::text || tasks.id::text)
    FROM tasks JOIN tree ON tasks.parent_task_id = tree.id
)
SELECT run_id, repeat('    ', depth) || key AS task, title, kind, status, assigned_role, iteration,
    (SELECT array_agg(other.key ORDER BY other.key) FROM task_dependencies dependency
        JOIN tasks other ON other.id = dependency.depends_on_task_id WHERE dependency.task_id = tree.id) AS waits_for,
    priority, branch, commit, id AS task_id
FROM tree ORDER BY run_id, place;
COMMENT ON VIEW v_task_tree IS 'Tasks of every run as an indented tree, with what each waits for';
COMMENT ON COLUMN v_task_tree.run_id IS 'Id of the run';
COMMENT ON COLUMN v_task_tree.task IS 'Key of the task, indented under its parent';
COMMENT ON COLUMN v_task_tree.title IS 'What is to be done, in a line';
COMMENT ON COLUMN v_task_tree.kind IS 'Why it exists';
COMMENT ON COLUMN v_task_tree.status IS 'Where it stands';
COMMENT ON COLUMN v_task_tree.assigned_role IS 'Role that does it';
COMMENT ON COLUMN v_task_tree.iteration IS 'Rounds of work on it so far';
COMMENT ON COLUMN v_task_tree.waits_for IS 'Keys of the tasks it waits for';
COMMENT ON COLUMN v_task_tree.priority IS 'Higher goes first';
COMMENT ON COLUMN v_task_tree.branch IS 'Git branch of the work';
COMMENT ON COLUMN v_task_tree.commit IS 'Git commit of the work';
COMMENT ON COLUMN v_task_tree.task_id IS 'Id of the task';

CREATE VIEW v_ledger_check AS
WITH summed AS (
    SELECT run_id, sum(tokens_input) AS tokens_input, sum(tokens_output) AS tokens_output,
        sum(tokens_cached) AS tokens_cached, sum(cost_usd) AS usd,
        coalesce(sum(reserved_tokens) FILTER (WHERE status = 'reserved'), 0) AS reserved_tokens,
        coalesce(sum(reserved_usd) FILTER (WHERE status = 'reserved'), 0) AS reserved_usd
    FROM model_calls GROUP BY run_id
), by_role AS (
    SELECT run_id, role, sum(tokens_input + tokens_output) AS tokens, sum(cost_usd) AS usd,
        coalesce(sum(reserved_tokens) FILTER (WHERE status = 'reserved'), 0) AS reserved_tokens,
        coalesce(sum(reserved_usd) FILTER (WHERE status = 'reserved'), 0) AS reserved_usd
    FROM model_calls GROUP BY run_id, role
), compared AS (
    SELECT run.id AS run_id, 'run' AS total_of, unit.name AS unit, unit.booked, unit.summed
    FROM project_runs run LEFT JOIN summed ON summed.run_id = run.id
    CROSS JOIN LATERAL (VALUES
        ('input tokens', run.spent_tokens_input::numeric, coalesce(summed.tokens_input, 0)),
        ('output tokens', run.spent_tokens_output, coalesce(summed.tokens_output, 0)),
        ('cached tokens', run.spent_tokens_cached, coalesce(summed.tokens_cached, 0)),
        ('usd', run.spent_usd, coalesce(summed.usd, 0)),
        ('held tokens', run.reserved_tokens, coalesce(summed.reserved_tokens, 0)),
        ('held usd', run.reserved_usd, coalesce(summed.reserved_usd, 0))
    ) unit (name, booked, summed)
    UNION ALL
    SELECT budget.owner_id, 'role ' || budget.name, unit.name, unit.booked, unit.summed
    FROM budgets budget
    LEFT JOIN by_role ON by_role.run_id = budget.owner_id AND by_role.role = budget.name
    CROSS JOIN LATERAL (VALUES
        ('tokens', budget.spent_tokens::numeric, coalesce(by_role.tokens, 0)),
        ('usd', budget.spent_usd, coalesce(by_role.usd, 0)),
        ('held tokens', budget.reserved_tokens, coalesce(by_role.reserved_tokens, 0)),
        ('held usd', budget.reserved_usd, coalesce(by_role.reserved_usd, 0))
    ) unit (name, booked, summed)
    WHERE budget.scope = 'run_role'
)
SELECT run_id, total_of, unit, booked, summed FROM compared WHERE booked <> summed;
COMMENT ON VIEW v_ledger_check IS 'Must be empty: totals that differ from the sum of their model calls';
COMMENT ON COLUMN v_ledger_check.run_id IS 'Id of the run';
COMMENT ON COLUMN v_ledger_check.total_of IS 'run, or the role whose cap it is';
COMMENT ON COLUMN v_ledger_check.unit IS 'What was counted';
COMMENT ON COLUMN v_ledger_check.booked IS 'The total that is stored';
COMMENT ON COLUMN v_ledger_check.summed IS 'The sum of the calls';

CREATE VIEW v_stuck_runs AS
SELECT run.id AS run_id, run.status, stuck.why, run.current_node, run.lease_owner, run.lease_expires_at, run.claims,
    run.updated_at
FROM project_runs run
CROSS JOIN LATERAL (VALUES
    (run.status = 'RUNNING' AND (run.lease_expires_at IS NULL OR run.lease_expires_at < now() - interval '1 minute'),
     'No worker holds it and none took it over: are workers running?'),
    (run.status = 'QUEUED' AND run.queued_at < now() - interval '10 minutes',
     'No worker took it up for ten minutes: are workers running, are there enough?'),
    (run.status = 'WAITING' AND NOT EXISTS (SELECT 1 FROM questions q WHERE q.run_id = run.id AND q.status = 'OPEN'),
     'It waits, but every question is closed.'),
    (run.status <> 'RUNNING' AND (run.reserved_tokens > 0 OR run.reserved_usd > 0),
     'It does not run, but still holds tokens or money for a call.')
) stuck (so, why)
WHERE stuck.so;
COMMENT ON VIEW v_stuck_runs IS 'Must be empty in health: runs that nobody will move on, and why';
COMMENT ON COLUMN v_stuck_runs.run_id IS 'Id of the run';
COMMENT ON COLUMN v_stuck_runs.status IS 'Where it stands';
COMMENT ON COLUMN v_stuck_runs.why IS 'What is wrong, in a sentence';
COMMENT ON COLUMN v_stuck_runs.current_node IS 'Node committed last or running then';
COMMENT ON COLUMN v_stuck_runs.lease_owner IS 'Worker that drove it';
COMMENT ON COLUMN v_stuck_runs.lease_expires_at IS 'When its lease ended (UTC)';
COMMENT ON COLUMN v_stuck_runs.claims IS 'Claims since a node was last committed';
COMMENT ON COLUMN v_stuck_runs.updated_at IS 'When the run last changed (UTC)';
