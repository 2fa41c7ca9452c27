// A client of the runtime API written from docs/api.md alone: nothing of this project is used.
//
//     node contract_client.mjs ENDPOINT EXECUTION OTHER     token on standard input
//
// Prints one JSON object with what it saw. OTHER is an execution that the token is not for.
const [endpoint, execution, other] = process.argv.slice(2)
const chunks = []
for await (const chunk of process.stdin) chunks.push(chunk)
const token = Buffer.concat(chunks).toString().trim()

async function call(method, path, body, headers = {}) {
  const sent = { ...headers }
  if (token && !path.startsWith('/health') && !path.startsWith('/metrics')) sent.Authorization = `Bearer ${token}`
  if (body !== undefined) sent['Content-Type'] = 'application/json'
  const answer = await fetch(endpoint + path, {
    method,
    headers: sent,
    body: body === undefined ? undefined : JSON.stringify(body),
  })
  const text = await answer.text()
  let parsed
  try {
    parsed = JSON.parse(text)
  } catch {
    parsed = text
  }
  return { status: answer.status, body: parsed }
}

const of = (id, what) => `/executions/${encodeURIComponent(id)}/${what}`
const variable = (name) => of(execution, `variables/${encodeURIComponent(name)}`)
const seen = {}

seen.health = await call('GET', '/health')
seen.metrics = (await call('GET', '/metrics')).status
seen.input = await call('GET', of(execution, 'input'))
seen.context = await call('GET', of(execution, 'context'))
seen.missing = await call('GET', variable('none'))
seen.put = await call('PUT', variable('a/../b %2F ü'), { value: { deep: [1, 'two', null] } })
seen.got = await call('GET', variable('a/../b %2F ü'))
seen.output = await call('POST', of(execution, 'output'), { data: { rows: 3 } }, { 'Idempotency-Key': `${execution}/1` })
seen.again = await call('POST', of(execution, 'output'), { data: { rows: 3 } }, { 'Idempotency-Key': `${execution}/1` })
seen.condition = await call('POST', of(execution, 'condition'), { condition: true })
seen.tool = await call('POST', '/tool-actions/execute', { tool: 'hook', action: 'send', params: { n: 1 } })
seen.toolConfig = await call('POST', '/tool-actions/execute', { tool: 'hook', action: 'send', config: { n: 2 } })
seen.noTool = await call('POST', '/tool-actions/execute', { tool: 'none', action: 'send', params: {} })
seen.foreign = await call('GET', of(other, 'input'))
seen.invalid = await call('POST', of(execution, 'condition'), { condition: 'maybe' })
seen.parallel = (
  await Promise.all(Array.from({ length: 100 }, (_, n) => call('PUT', variable(`n${n}`), { value: n })))
).map((answer) => answer.status)
seen.values = (await Promise.all(Array.from({ length: 100 }, (_, n) => call('GET', variable(`n${n}`))))).map(
  (answer) => answer.body.data.value,
)
console.log(JSON.stringify(seen))
