CREATE FUNCTION book_grant() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    held CONSTANT numeric := extract(epoch FROM OLD.granted_until - OLD.granted_at);
    -- Nobody works after the end of a lease; when before it a worker died nobody knows.
    ended CONSTANT timestamptz := least(clock_timestamp(), OLD.granted_until, OLD.lease_expires_at);
BEGIN
    PERFORM FROM budgets WHERE id = ANY (OLD.granted_budgets) ORDER BY id FOR NO KEY UPDATE;
    UPDATE budgets SET reserved_seconds = greatest(0, reserved_seconds - held),
        spent_seconds = spent_seconds + greatest(0, extract(epoch FROM ended - OLD.granted_at))
    WHERE id = ANY (OLD.granted_budgets);
    NEW.granted_at := NULL;
    NEW.granted_until := NULL;
    NEW.granted_budgets := NULL;
    RETURN NEW;
END $$;

COMMENT ON FUNCTION book_grant() IS 'Books what a run worked of its grant and gives the rest back, in the statement that ends its lease';

CREATE TRIGGER book_grant BEFORE UPDATE OF lease_owner, lease_epoch ON project_runs FOR EACH ROW
WHEN (OLD.granted_until IS NOT NULL AND (NEW.lease_owner IS NULL OR NEW.lease_epoch <> OLD.lease_epoch))
EXECUTE FUNCTION book_grant();

DROP TRIGGER guard_reservation ON budgets;

CREATE TRIGGER guard_reservation BEFORE UPDATE OF reserved_tokens, reserved_usd, reserved_seconds ON budgets FOR EACH ROW
WHEN ((NEW.reserved_tokens > OLD.reserved_tokens AND NEW.spent_tokens + NEW.reserved_tokens > NEW.limit_tokens)
      OR (NEW.reserved_usd > OLD.reserved_usd AND NEW.spent_usd + NEW.reserved_usd > NEW.limit_usd)
      OR (NEW.reserved_seconds > OLD.reserved_seconds AND NEW.spent_seconds + NEW.reserved_seconds > NEW.limit_seconds))
EXECUTE FUNCTION refuse('The reservation would pass a limit of the budget.');

CREATE OR REPLACE VIEW v_budget_burn AS
SELECT limits.scope, limits.owner_id, limits.name, unit.name AS unit, unit.spent, unit.held, unit.most,
    round((unit.spent + unit.held) / unit.most, 4) AS share
FROM (
    SELECT 'run' AS scope, id AS owner_id, 'all' AS name,
        spent_tokens_input + spent_tokens_output AS spent_tokens, reserved_tokens, limit_tokens,
        spent_usd, reserved_usd, limit_usd, spent_seconds, 0 AS reserved_seconds, limit_seconds
    FROM project_runs
    UNION ALL
    SELECT scope, owner_id, name, spent_tokens, reserved_tokens, limit_tokens, spent_usd, reserved_usd, limit_usd,
        spent_seconds, reserved_seconds, limit_seconds
    FROM budgets
) limits
CROSS JOIN LATERAL (VALUES
    ('tokens', limits.spent_tokens::numeric, limits.reserved_tokens::numeric, limits.limit_tokens::numeric),
    ('usd', limits.spent_usd, limits.reserved_usd, limits.limit_usd),
    ('seconds', limits.spent_seconds, limits.reserved_seconds, limits.limit_seconds::numeric)
) unit (name, spent, held, most)
WHERE unit.most IS NOT NULL
ORDER BY share DESC;

CREATE OR REPLACE VIEW v_ledger_check AS
WITH summed AS (
    SELECT run_id, sum(tokens_input) AS tokens_input, sum(tokens_output) AS tokens_output,
        sum(tokens_cached) AS tokens_cached, sum(cost_usd) AS usd,
        coalesce(sum(reserved_tokens) FILTER (WHERE status = 'reserved'), 0) AS reserved_tokens,
        coalesce(sum(reserved_usd) FILTER (WHERE status = 'reserved'), 0) AS reserved_usd
    FROM model_calls GROUP BY run_id
), by_role AS (
    SELECT run_id, role, sum(tokens_input + tokens_output) AS tokens, sum(cost_usd) AS usd, sum(seconds) AS seconds,
        coalesce(sum(reserved_tokens) FILTER (WHERE status = 'reserved'), 0) AS reserved_tokens,
        coalesce(sum(reserved_usd) FILTER (WHERE status = 'reserved'), 0) AS reserved_usd,
        coalesce(sum(reserved_seconds) FILTER (WHERE status = 'reserved'), 0) AS reserved_seconds
    FROM model_calls GROUP BY run_id, role
), by_project AS (
    SELECT run.project_id, sum(summed.tokens_input + summed.tokens_output) AS tokens, sum(summed.usd) AS usd,
        sum(summed.reserved_tokens) AS reserved_tokens, sum(summed.reserved_usd) AS reserved_usd
    FROM summed JOIN project_runs run ON run.id = summed.run_id GROUP BY run.project_id
), by_month AS (
    SELECT tenant_id, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM') AS month,
        sum(tokens_input + tokens_output) AS tokens, sum(cost_usd) AS usd,
        coalesce(sum(reserved_tokens) FILTER (WHERE status = 'reserved'), 0) AS reserved_tokens,
        coalesce(sum(reserved_usd) FILTER (WHERE status = 'reserved'), 0) AS reserved_usd
    FROM model_calls GROUP BY 1, 2
), granted AS (
    SELECT budget_id, sum(extract(epoch FROM granted_until - granted_at)) AS seconds
    FROM project_runs, unnest(granted_budgets) budget_id GROUP BY budget_id
), compared AS (
    SELECT run.id AS run_id, 'run' AS total_of, unit.name AS unit, unit.booked, unit.summed, false AS removed
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
    SELECT CASE WHEN budget.scope = 'run_role' THEN budget.owner_id END, CASE budget.scope
            WHEN 'run_role' THEN 'role ' || budget.name WHEN 'project' THEN 'project ' || budget.owner_id
            ELSE 'month ' || budget.name END,
        unit.name, unit.booked, unit.summed,
        -- What a month has cost stays booked when a project is deleted with its calls.
        budget.scope = 'tenant_month' AND unit.name IN ('tokens', 'usd') AND unit.booked > unit.summed
    FROM budgets budget
    LEFT JOIN by_role ON budget.scope = 'run_role' AND by_role.run_id = budget.owner_id AND by_role.role = budget.name
    LEFT JOIN by_project ON budget.scope = 'project' AND by_project.project_id = budget.owner_id
    LEFT JOIN by_month ON budget.scope = 'tenant_month' AND by_month.tenant_id = budget.owner_id
        AND by_month.month = budget.name
    LEFT JOIN granted ON granted.budget_id = budget.id
    CROSS JOIN LATERAL (VALUES
        ('tokens', budget.spent_tokens::numeric, coalesce(by_role.tokens, by_project.tokens, by_month.tokens, 0)),
        ('usd', budget.spent_usd, coalesce(by_role.usd, by_project.usd, by_month.usd, 0)),
        ('held tokens', budget.reserved_tokens,
         coalesce(by_role.reserved_tokens, by_project.reserved_tokens, by_month.reserved_tokens, 0)),
        ('held usd', budget.reserved_usd,
         coalesce(by_role.reserved_usd, by_project.reserved_usd, by_month.reserved_usd, 0)),
        -- The time that runs worked was measured, and is written down nowhere else.
        ('seconds', budget.spent_seconds,
         CASE budget.scope WHEN 'run_role' THEN coalesce(by_role.seconds, 0) ELSE budget.spent_seconds END),
        ('held seconds', budget.reserved_seconds, coalesce(by_role.reserved_seconds, granted.seconds, 0))
    ) unit (name, booked, summed)
)
SELECT run_id, total_of, unit, booked, summed FROM compared WHERE booked <> summed AND NOT removed;
