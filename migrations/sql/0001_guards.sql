-- What no program and no person may do to the run store, whoever asks. Conditions stand in WHEN, so that a lawful write
-- calls no function. A refusal is error 23001 (restrict_violation), which drivers show as an integrity error.

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'restrict_violation', MESSAGE = TG_ARGV[0], TABLE = TG_TABLE_NAME;
END $$;
COMMENT ON FUNCTION refuse() IS 'Refuses the write with the sentence that the trigger gives';

CREATE FUNCTION refuse_status() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME,
        MESSAGE = format('The %s %s is %s and cannot become %s.', TG_ARGV[0], OLD.id, OLD.status, NEW.status);
END $$;
COMMENT ON FUNCTION refuse_status() IS 'Refuses a change of status that the life cycle does not know';

-- Life cycles: the moves of domain/project.py, domain/run.py, domain/task.py and of questions and calls.

CREATE TRIGGER guard_status BEFORE UPDATE OF status ON projects FOR EACH ROW
WHEN (OLD.status <> NEW.status AND (OLD.status, NEW.status) NOT IN (
    ('DRAFT', 'READY'), ('DRAFT', 'ARCHIVED'),
    ('READY', 'RUNNING'), ('READY', 'ARCHIVED'),
    ('RUNNING', 'COMPLETED'), ('RUNNING', 'FAILED'),
    ('COMPLETED', 'READY'), ('COMPLETED', 'RUNNING'), ('COMPLETED', 'ARCHIVED'),
    ('FAILED', 'READY'), ('FAILED', 'RUNNING'), ('FAILED', 'ARCHIVED')
)) EXECUTE FUNCTION refuse_status('project');

CREATE TRIGGER guard_status BEFORE UPDATE OF status ON project_runs FOR EACH ROW
WHEN (OLD.status <> NEW.status AND (OLD.status, NEW.status) NOT IN (
    ('QUEUED', 'RUNNING'), ('QUEUED', 'STOPPED_USER'),
    ('RUNNING', 'COMPLETED'), ('RUNNING', 'FAILED'), ('RUNNING', 'STOPPED_BUDGET'), ('RUNNING', 'STOPPED_SECURITY'),
    ('RUNNING', 'STOPPED_USER'), ('RUNNING', 'PAUSED'), ('RUNNING', 'WAITING'),
    ('PAUSED', 'QUEUED'), ('PAUSED', 'STOPPED_USER'),
    ('WAITING', 'QUEUED'), ('WAITING', 'STOPPED_USER'),
    ('FAILED', 'QUEUED'), ('STOPPED_BUDGET', 'QUEUED'), ('STOPPED_SECURITY', 'QUEUED'), ('STOPPED_USER', 'QUEUED')
)) EXECUTE FUNCTION refuse_status('run');

CREATE TRIGGER guard_status BEFORE UPDATE OF status ON tasks FOR EACH ROW
WHEN (OLD.status <> NEW.status AND (OLD.status, NEW.status) NOT IN (
    ('CREATED', 'READY'), ('CREATED', 'BLOCKED'), ('CREATED', 'FAILED'),
    ('READY', 'IN_PROGRESS'), ('READY', 'BLOCKED'), ('READY', 'FAILED'),
    ('BLOCKED', 'READY'), ('BLOCKED', 'FAILED'),
    ('IN_PROGRESS', 'DONE'), ('IN_PROGRESS', 'FAILED'), ('IN_PROGRESS', 'BLOCKED')
)) EXECUTE FUNCTION refuse_status('task');

CREATE TRIGGER guard_answer BEFORE UPDATE ON questions FOR EACH ROW
WHEN (OLD.status <> 'OPEN' AND (OLD.status, OLD.answer, OLD.answered_by, OLD.answered_at)
      IS DISTINCT FROM (NEW.status, NEW.answer, NEW.answered_by, NEW.answered_at))
EXECUTE FUNCTION refuse('A question that is closed keeps its answer.');

CREATE TRIGGER guard_settled BEFORE UPDATE ON model_calls FOR EACH ROW
WHEN (OLD.status <> 'reserved' AND (OLD.status, OLD.tokens_input, OLD.tokens_output, OLD.tokens_cached, OLD.cost_usd)
      IS DISTINCT FROM (NEW.status, NEW.tokens_input, NEW.tokens_output, NEW.tokens_cached, NEW.cost_usd))
EXECUTE FUNCTION refuse('A model call that is settled keeps what it cost.');

-- What never changes.

CREATE TRIGGER guard_version BEFORE UPDATE ON project_templates FOR EACH ROW
WHEN ((to_jsonb(OLD) - 'archived_at') IS DISTINCT FROM (to_jsonb(NEW) - 'archived_at'))
EXECUTE FUNCTION refuse('A version of a template never changes: make the next version.');

CREATE TRIGGER guard_removal BEFORE DELETE ON project_templates FOR EACH ROW
EXECUTE FUNCTION refuse('A version of a template is never deleted: archive it.');

CREATE TRIGGER guard_snapshot BEFORE UPDATE OF config_snapshot ON project_runs FOR EACH ROW
WHEN (OLD.config_snapshot IS DISTINCT FROM NEW.config_snapshot)
EXECUTE FUNCTION refuse('The configuration of a run never changes: start another run.');

CREATE TRIGGER guard_entry BEFORE UPDATE ON task_comments FOR EACH ROW
EXECUTE FUNCTION refuse('Comments are never changed: write another one.');

CREATE TRIGGER guard_entry BEFORE UPDATE ON events FOR EACH ROW
EXECUTE FUNCTION refuse('Events are never changed.');

-- A deletion that comes from deleting the project runs inside the foreign key's own trigger: depth 1 or more.

CREATE TRIGGER guard_removal BEFORE DELETE ON task_comments FOR EACH ROW WHEN (pg_trigger_depth() = 0)
EXECUTE FUNCTION refuse('Comments are never deleted, unless with their project.');

CREATE TRIGGER guard_removal BEFORE DELETE ON events FOR EACH ROW WHEN (pg_trigger_depth() = 0)
EXECUTE FUNCTION refuse('Events are never deleted, unless with their project.');

CREATE TRIGGER guard_removal BEFORE DELETE ON model_calls FOR EACH ROW WHEN (pg_trigger_depth() = 0)
EXECUTE FUNCTION refuse('Model calls are never deleted, unless with their project.');

-- Budgets. A provider may bill more than was held for a call, and that excess must be booked: so what is spent may pass
-- a limit, but nothing more can be held once spent and held together would.

CREATE TRIGGER guard_reservation BEFORE UPDATE OF reserved_tokens, reserved_usd ON project_runs FOR EACH ROW
WHEN ((NEW.reserved_tokens > OLD.reserved_tokens
       AND NEW.spent_tokens_input + NEW.spent_tokens_output + NEW.reserved_tokens > NEW.limit_tokens)
      OR (NEW.reserved_usd > OLD.reserved_usd AND NEW.spent_usd + NEW.reserved_usd > NEW.limit_usd))
EXECUTE FUNCTION refuse('The reservation would pass a limit of the run.');

CREATE TRIGGER guard_reservation BEFORE UPDATE OF reserved_tokens, reserved_usd ON budgets FOR EACH ROW
WHEN ((NEW.reserved_tokens > OLD.reserved_tokens AND NEW.spent_tokens + NEW.reserved_tokens > NEW.limit_tokens)
      OR (NEW.reserved_usd > OLD.reserved_usd AND NEW.spent_usd + NEW.reserved_usd > NEW.limit_usd))
EXECUTE FUNCTION refuse('The reservation would pass a limit of the budget.');

-- Budgets name their owner without a foreign key (it may be a run, a project or a tenant); they go when it goes.

CREATE FUNCTION remove_budgets() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM budgets USING removed WHERE budgets.owner_id = removed.id;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION remove_budgets() IS 'Removes the budgets of deleted runs and projects';

CREATE TRIGGER remove_budgets AFTER DELETE ON project_runs REFERENCING OLD TABLE AS removed FOR EACH STATEMENT
EXECUTE FUNCTION remove_budgets();

CREATE TRIGGER remove_budgets AFTER DELETE ON projects REFERENCING OLD TABLE AS removed FOR EACH STATEMENT
EXECUTE FUNCTION remove_budgets();

-- Rows of a run carry its tenant and project without foreign keys of their own: the run has both, and checks them. Events
-- of a project without a run go when it goes.

CREATE FUNCTION remove_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM events USING removed WHERE events.project_id = removed.id AND events.run_id IS NULL;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION remove_events() IS 'Removes the events of deleted projects that belong to no run';

CREATE TRIGGER remove_events AFTER DELETE ON projects REFERENCING OLD TABLE AS removed FOR EACH STATEMENT
EXECUTE FUNCTION remove_events();

-- Trees and dependencies. The run's row is locked first (as every writer of events does), so that two transactions
-- cannot close a cycle between them; the checks come after the statement, when all of its rows can be seen.

CREATE FUNCTION check_dependencies() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    found_key text;
BEGIN
    PERFORM 1 FROM project_runs WHERE id IN (SELECT run_id FROM tasks JOIN added ON tasks.id = added.task_id)
        ORDER BY id FOR NO KEY UPDATE;
    SELECT waits.key INTO found_key FROM added
        JOIN tasks waits ON waits.id = added.task_id JOIN tasks other ON other.id = added.depends_on_task_id
        WHERE waits.run_id <> other.run_id LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME,
            MESSAGE = format('The task %s cannot wait for a task of another run.', found_key);
    END IF;
    WITH RECURSIVE reached (origin, task_id) AS (
        SELECT task_id, depends_on_task_id FROM added
        UNION
        SELECT reached.origin, further.depends_on_task_id FROM reached
            JOIN task_dependencies further ON further.task_id = reached.task_id
    )
    SELECT tasks.key INTO found_key FROM reached JOIN tasks ON tasks.id = reached.origin
        WHERE reached.origin = reached.task_id LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME,
            MESSAGE = format('The task %s would wait for itself: its dependencies form a cycle.', found_key);
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION check_dependencies() IS 'Refuses dependencies that form a cycle or leave their run';

CREATE TRIGGER check_dependencies AFTER INSERT ON task_dependencies REFERENCING NEW TABLE AS added FOR EACH STATEMENT
EXECUTE FUNCTION check_dependencies();

CREATE TRIGGER guard_entry BEFORE UPDATE ON task_dependencies FOR EACH ROW
EXECUTE FUNCTION refuse('A dependency is not changed: delete it and add another.');

CREATE FUNCTION check_parent() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM project_runs WHERE id = NEW.run_id FOR NO KEY UPDATE;
    IF NOT EXISTS (SELECT 1 FROM tasks WHERE id = NEW.parent_task_id AND run_id = NEW.run_id) THEN
        RAISE EXCEPTION USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME,
            MESSAGE = format('The task %s cannot be part of a task of another run.', NEW.key);
    END IF;
    IF EXISTS (
        WITH RECURSIVE above (id) AS (
            SELECT NEW.parent_task_id
            UNION
            SELECT tasks.parent_task_id FROM above JOIN tasks ON tasks.id = above.id
                WHERE tasks.parent_task_id IS NOT NULL
        )
        SELECT 1 FROM above WHERE id = NEW.id
    ) THEN
        RAISE EXCEPTION USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME,
            MESSAGE = format('The task %s would be part of itself: its parents form a cycle.', NEW.key);
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION check_parent() IS 'Refuses parents that form a cycle or leave their run';

CREATE TRIGGER check_parent AFTER INSERT OR UPDATE OF parent_task_id ON tasks FOR EACH ROW
WHEN (NEW.parent_task_id IS NOT NULL) EXECUTE FUNCTION check_parent();
