CREATE FUNCTION run_forecast(wanted uuid) RETURNS jsonb LANGUAGE sql STABLE AS $$
    WITH run AS (
        SELECT * FROM project_runs
        WHERE id = wanted AND status IN ('QUEUED', 'RUNNING', 'PAUSED', 'WAITING') AND progress BETWEEN 10 AND 99
        AND model_calls > 0
    ), task AS (
        SELECT count(*) FILTER (WHERE status = 'DONE') AS done,
            count(*) FILTER (WHERE status NOT IN ('DONE', 'FAILED')) AS remaining
        FROM tasks WHERE run_id = wanted
    ), finished AS (
        SELECT coalesce(sum(call.cost_usd), 0) AS usd, coalesce(sum(call.tokens_input + call.tokens_output), 0) AS tokens
        FROM model_calls call JOIN tasks ON tasks.run_id = call.run_id AND tasks.key = call.task_key
        WHERE call.run_id = wanted AND tasks.status = 'DONE'
    ), spent AS (
        SELECT unit.*, (100 - run.progress)::numeric / run.progress * unit.spent AS by_progress,
            CASE WHEN task.done > 0 AND task.remaining > 0 THEN task.remaining * unit.of_tasks / task.done END AS by_tasks
        FROM run, task, finished, LATERAL (VALUES
            ('usd', 6, run.spent_usd, finished.usd, run.limit_usd),
            ('tokens', 0, run.spent_tokens_input + run.spent_tokens_output, finished.tokens, run.limit_tokens),
            ('seconds', 0, run.spent_seconds, NULL, run.limit_seconds)
        ) unit (name, digits, spent, of_tasks, most)
    ), ranged AS (
        SELECT name, digits, round(spent + least(by_progress, by_tasks) / 2, digits) AS low,
            round(spent + greatest(by_progress, by_tasks) * 3 / 2, digits) AS high, round(spent, digits) AS spent,
            most
        FROM spent
    )
    SELECT jsonb_object_agg(name, jsonb_build_object(
            'spent', CASE WHEN digits = 0 THEN to_jsonb(spent) ELSE to_jsonb(spent::text) END,
            'low', CASE WHEN digits = 0 THEN to_jsonb(low) ELSE to_jsonb(low::text) END,
            'high', CASE WHEN digits = 0 THEN to_jsonb(high) ELSE to_jsonb(high::text) END,
            'limit', CASE WHEN digits = 0 THEN to_jsonb(most) ELSE to_jsonb(most::text) END,
            'reaches_limit', CASE WHEN low > most THEN 'expected' WHEN high > most THEN 'possible' ELSE 'no' END
        )) || jsonb_build_object('computed', (SELECT format(
            'At %s %% with %s tasks done and %s left: what is left costs half to one and a half times what the same share'
            || ' of the way has cost so far%s.', run.progress, task.done, task.remaining, CASE WHEN task.done > 0
            AND task.remaining > 0 THEN ', or what as many finished tasks have cost' ELSE '' END) FROM run, task))
    FROM ranged HAVING count(*) > 0
$$;
COMMENT ON FUNCTION run_forecast(uuid) IS 'What a run will have spent when it is done, as ranges, and how they are computed; null: nothing can be said';
