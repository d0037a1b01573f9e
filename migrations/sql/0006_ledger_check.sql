CREATE OR REPLACE VIEW v_ledger_check AS
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
    CROSS JOIN LATERAL (VALUES
        ('tokens', budget.spent_tokens::numeric, coalesce(by_role.tokens, by_project.tokens, by_month.tokens, 0)),
        ('usd', budget.spent_usd, coalesce(by_role.usd, by_project.usd, by_month.usd, 0)),
        ('held tokens', budget.reserved_tokens,
         coalesce(by_role.reserved_tokens, by_project.reserved_tokens, by_month.reserved_tokens, 0)),
        ('held usd', budget.reserved_usd,
         coalesce(by_role.reserved_usd, by_project.reserved_usd, by_month.reserved_usd, 0))
    ) unit (name, booked, summed)
)
SELECT run_id, total_of, unit, booked, summed FROM compared WHERE booked <> summed AND NOT removed;
