// pg-workflows (TypeScript). Its setting is WORKFLOW_RUN_WORKERS, the number of its workers. Called as the Python scripts
// are: SCENARIO N SETTING, the database in $DATABASE_URL; it prints one JSON line.

import pg from 'pg'
import { WorkflowEngine, workflow } from 'pg-workflows'

const [, , scenario, count, workers] = process.argv
process.env.WORKFLOW_RUN_WORKERS = workers

const END_OF_LONG_RUN = 100
const UNFINISHED = "select count(*)::int as value from workflow_runs where status <> 'completed'"
const STATUS = 'select status as value from workflow_runs where id = $1'

const stamps = []
const noop = async () => ({ ok: true })

// Steps are read from the function's source, and a run is completed with the last of those: hence five that are written
// out, and in the long run one more step behind its loop.
const five = workflow('five', async ({ step }) => {
  await step.run('s0', noop)
  await step.run('s1', noop)
  await step.run('s2', noop)
  await step.run('s3', noop)
  await step.run('s4', noop)
  return { done: true }
})

const one = workflow('one', async ({ step }) => {
  await step.run('s', noop)
  return { done: true }
})

const event = workflow('event', async ({ step }) => step.waitFor('go', { eventName: 'go' }))

const long = workflow('long', async ({ step, input }) => {
  for (let number = 0; number < input.steps; number++) {
    await step.run(`s${number}`, noop)
    stamps.push(performance.now())
  }
  await step.run('end', noop)
  return { done: true }
})

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 40 })
const watch = new pg.Client({ connectionString: process.env.DATABASE_URL })
const quiet = { log() {}, error(message, error) { console.error(message, error) } }
const engine = () => new WorkflowEngine({ pool, workflows: [five, one, event, long], logger: quiet })

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

async function until(wanted, query, values = [], pause = 1) {
  while ((await watch.query(query, values)).rows[0].value !== wanted) await sleep(pause)
}

async function start(working, workflowId, input = {}) {
  return (await working.startWorkflow({ workflowId, input, options: { expireInSeconds: 3600 } })).id
}

// At work, and a first run done.
async function settled() {
  const working = engine()
  await working.start()
  await until('completed', STATUS, [await start(working, 'one')])
  return working
}

function quantiles(seen) {
  const ordered = seen.sort((a, b) => a - b)
  return {
    p50_ms: ordered[Math.floor(ordered.length / 2)],
    p95_ms: ordered[Math.min(ordered.length - 1, Math.floor(ordered.length * 0.95))],
  }
}

const scenarios = {
  // Started without a worker, then drained; the time it takes to bring the workers up does not count.
  async throughput(runs) {
    const starter = engine()
    await starter.start(false)
    let began = performance.now()
    for (let number = 0; number < runs; number++) await start(starter, 'five')
    const starting = (performance.now() - began) / 1000
    await starter.stop()
    await engine().start()
    began = performance.now()
    await until(0, UNFINISHED, [], 20)
    const draining = (performance.now() - began) / 1000
    return { start_per_s: runs / starting, runs_per_s: runs / draining, steps_per_s: (5 * runs) / draining }
  },

  async latency(runs) {
    const working = await settled()
    const seen = []
    for (let number = 0; number < runs; number++) {
      const began = performance.now()
      await until('completed', STATUS, [await start(working, 'one')])
      seen.push(performance.now() - began)
      await sleep(20)
    }
    return quantiles(seen)
  },

  async event(runs) {
    const working = await settled()
    const seen = []
    for (let number = 0; number < runs; number++) {
      const runId = await start(working, 'event')
      await until('paused', STATUS, [runId])
      await sleep(20)
      const began = performance.now()
      await working.triggerEvent({ runId, eventName: 'go', data: { a: 1 } })
      await until('completed', STATUS, [runId])
      seen.push(performance.now() - began)
    }
    return quantiles(seen)
  },

  async long(steps) {
    const working = await settled()
    await until('completed', STATUS, [await start(working, 'long', { steps })], 20)
    if (stamps.length !== steps) throw new Error('the run was replayed while it was measured')
    const end = Math.min(END_OF_LONG_RUN, Math.floor(steps / 4))
    return {
      first_ms_per_step: (stamps[end] - stamps[0]) / end,
      last_ms_per_step: (stamps[steps - 1] - stamps[steps - 1 - end]) / end,
    }
  },
}

await watch.connect()
console.log(JSON.stringify(await scenarios[scenario](Number(count))))
process.exit(0)
