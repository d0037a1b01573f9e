CREATE TRIGGER guard_prompts BEFORE UPDATE OF prompts ON project_runs FOR EACH ROW
WHEN (OLD.prompts IS NOT NULL AND OLD.prompts IS DISTINCT FROM NEW.prompts)
EXECUTE FUNCTION refuse('The prompts of a run never change: start another run.');

CREATE TRIGGER guard_entry BEFORE UPDATE ON prompts FOR EACH ROW
EXECUTE FUNCTION refuse('Prompts are never changed: another text is another row.');

CREATE TRIGGER guard_removal BEFORE DELETE ON prompts FOR EACH ROW
EXECUTE FUNCTION refuse('Prompts are never deleted: runs are pinned to them.');

CREATE VIEW v_run_prompts AS
SELECT run.id AS run_id, project.name AS project, run.number, pin.key AS prompt, pin.value AS sha256,
    encode(sha256(convert_to(kept.text, 'UTF8') || '\x00' || convert_to(rules.text, 'UTF8')), 'hex') AS prompt_hash,
    kept.text
FROM project_runs run JOIN projects project ON project.id = run.project_id
CROSS JOIN LATERAL jsonb_each_text(run.prompts) pin
LEFT JOIN prompts kept ON kept.sha256 = pin.value
LEFT JOIN prompts rules ON rules.sha256 = run.prompts ->> 'rules'
ORDER BY run.created_at DESC, pin.key;

COMMENT ON VIEW v_run_prompts IS 'A row for each prompt of each run: the text that it is pinned to';

COMMENT ON COLUMN v_run_prompts.run_id IS 'Id of the run';

COMMENT ON COLUMN v_run_prompts.project IS 'Name of its project';

COMMENT ON COLUMN v_run_prompts.number IS 'Counts from 1 within the project';

COMMENT ON COLUMN v_run_prompts.prompt IS 'Name of the prompt';

COMMENT ON COLUMN v_run_prompts.sha256 IS 'What the run is pinned to';

COMMENT ON COLUMN v_run_prompts.prompt_hash IS 'What calls made with it carry in model_calls: the hash of the prompt and of the rules';

COMMENT ON COLUMN v_run_prompts.text IS 'The text; empty: it is not kept any more';
