// The page of `stead sim serve`: asks some times a second for what has changed, and draws it.
// Nothing that the server says is taken for HTML.
'use strict'

const $ = id => document.getElementById(id)

/** An element with its children. `on`: its click. */
function make(tag, options = {}, ...children) {
  const element = document.createElement(tag)
  const { on, ...rest } = options
  for (const [key, value] of Object.entries(rest)) {
    if (key in element && key !== 'list') element[key] = value
    else element.setAttribute(key, value)
  }
  if (on) element.addEventListener('click', on)
  element.append(...children)
  return element
}

// More nodes than this are drawn as cells.
const CARDS = 60
// So many lines of what happened are shown.
const LINES = 1000

const state = {
  known: { scenario: 0, turns: 0, look: 0, line: 0 },
  nodes: [], guests: [], lines: [], acts: [], summary: null,
  speed: null, seek: null, chosen: null, tale: null,
}

/** One request. What is refused is shown. */
async function ask(path, body) {
  const answer = await fetch(path, body === undefined ? {} : { method: 'POST', body })
  const text = await answer.text()
  if (!answer.ok) throw new Error(text)
  return text
}

let toastTimer
function toast(text) {
  $('toast').textContent = text
  $('toast').hidden = false
  clearTimeout(toastTimer)
  toastTimer = setTimeout(() => { $('toast').hidden = true }, 6000)
}

async function send(path, body) {
  try {
    await ask(path, body)
    await refresh()
  } catch (error) {
    toast(error.message)
  }
}
const act = words => send('/api/act', words)
const time = words => send('/api/time', words)

/** Takes up an answer of /api/state. */
function take(s) {
  const other = s.scenario !== state.known.scenario
  if (other) {
    state.nodes = []
    state.guests = []
    state.chosen = null
    state.tale = null
  }
  if (s.anew) state.lines = []
  for (const [i, name, lease, leads, status, out] of s.nodes) state.nodes[i] = { i, name, lease, leads, status, out }
  for (const [i, sid, node, what, want, ha] of s.guests) state.guests[i] = { sid, node, state: what, want, ha }
  state.nodes.length = s.size[0]
  state.guests.length = s.size[1]
  state.lines.push(...s.lines)
  if (state.lines.length > LINES) state.lines.splice(0, state.lines.length - LINES)
  Object.assign(state, { acts: s.acts, summary: s.summary, speed: s.speed, pace: s.pace, seek: s.seek })
  state.known = { scenario: s.scenario, turns: s.turns, look: s.look, line: s.line }
  return { changed: other || s.nodes.length > 0 || s.guests.length > 0, said: s.anew || s.lines.length > 0 }
}

let asking = null
/** Asks for what has changed; one question at a time. */
function refresh() {
  asking ??= (async () => {
    try {
      const query = new URLSearchParams(state.known)
      const { changed, said } = take(JSON.parse(await ask(`/api/state?${query}`)))
      draw(changed, said)
      if (state.chosen?.sid && (changed || said)) await tell(state.chosen.sid)
    } finally {
      asking = null
    }
  })()
  return asking
}

async function tell(sid) {
  const tale = JSON.parse(await ask(`/api/guest?sid=${encodeURIComponent(sid)}`))
  if (state.chosen?.sid === sid) {
    state.tale = tale
    drawTale()
  }
}

const seconds = (t, digits = 3) => `${t.toFixed(digits)} s`

function draw(changed, said) {
  const { now, furthest, broken } = state.summary
  $('clock').textContent = seconds(now)
  $('run').textContent = state.speed === null ? 'Run' : 'Pause'
  const slow = state.speed !== null && state.pace < state.speed * 0.8
  $('pace').textContent = state.seek !== null ? `going to ${seconds(state.seek, 1)} …` : slow ? `${state.pace.toFixed(1)}× is what goes` : ''
  if (document.activeElement !== $('seek') || !dragging) {
    $('seek').max = furthest
    $('seek').value = now
  }
  $('end').textContent = seconds(furthest, 1)
  $('marks').replaceChildren(...state.acts.slice(-300).map(([at, words]) => {
    const mark = make('i', { title: `${at} ${words}` })
    mark.style.left = `${furthest > 0 ? (100 * at) / furthest : 0}%`
    return mark
  }))
  $('broken').hidden = !broken
  if (broken) $('broken').textContent = `A promise is broken: ${broken}. Save the story: it shows how.`
  drawFigures()
  if (changed) drawNodes()
  if (said) drawLog()
  if (!state.chosen?.sid) drawChosen()
}

function drawFigures() {
  const s = state.summary
  const count = what => state.guests.filter(g => g.state === what).length
  const figure = (label, value) => make('span', {}, make('b', {}, String(value)), ` ${label}`)
  $('figures').replaceChildren(
    figure(s.leader ? 'leads' : 'no leader', s.leader ?? '–'),
    figure(`of ${state.guests.length} guests run`, count('runs') + count('moving')),
    figure('out now', s.outages[0]),
    figure('outages over', s.outages[1]),
    figure('the longest', s.outages[1] ? seconds(s.longest, 1) : '–'),
    figure('recovered', s.recoveries), figure('live moves', s.moves), figure('thawed', s.thaws), figure('resets', s.resets),
    ...(s.waiting ? [figure('changes wait for a leader', s.waiting)] : []),
  )
}

const outWords = { power: 'power off', cable: 'cable out', daemon: 'daemon stands', fence: 'fence process stands', machine: 'machine stands' }
const leaseWords = { held: 'has a lease', paused: 'no lease: its guests stand', none: 'no lease', lost: 'committed lost', off: 'off' }

function byNode() {
  const on = state.nodes.map(() => [])
  for (const g of state.guests) on[g.node]?.push(g)
  return on
}

function drawNodes() {
  const cells = state.nodes.length > CARDS
  $('map').hidden = !cells
  $('nodes').hidden = cells
  if (cells) return drawMap()
  const on = byNode()
  const small = state.guests.length > 400
  $('nodes').replaceChildren(...state.nodes.map(n => {
    const chip = g => {
      const mine = state.chosen?.sid === g.sid ? ' chosen' : ''
      return make('button', {
        className: `guest ${g.state}${small ? ' small' : ''}${mine}`, title: `${g.sid}: ${g.state}`, textContent: g.sid,
        on: event => { event.stopPropagation(); choose({ sid: g.sid }) },
      })
    }
    const out = n.out.map(o => outWords[o]).join(', ')
    const title = make('h3', {}, make('button', { className: 'name', textContent: n.name, on: () => choose({ node: n.i }) }))
    if (n.leads) title.append(make('span', { className: 'leads', textContent: 'leader' }))
    title.append(make('small', {}, n.status))
    const card = make('article', {
      className: `node ${n.lease}${n.out.includes('power') ? ' off' : ''}${state.chosen?.node === n.i ? ' chosen' : ''}`, 'aria-label': n.name,
      on: () => choose({ node: n.i }),
    }, title, make('p', {}, leaseWords[n.lease], ...(out ? [' · ', make('span', { className: 'out', textContent: out })] : [])),
    make('div', { className: 'guests' }, ...on[n.i].map(chip)))
    return card
  }))
}

let cell = null
/** Many nodes: a cell each, with a bar of its guests by what becomes of them. */
function drawMap() {
  const canvas = $('map')
  const style = getComputedStyle(document.documentElement)
  const colour = name => style.getPropertyValue(`--${name}`).trim()
  const wide = canvas.parentElement.clientWidth - 28
  const columns = Math.max(10, Math.floor(wide / Math.max(24, Math.min(64, Math.sqrt((wide * 620) / state.nodes.length)))))
  const size = wide / columns
  const rows = Math.ceil(state.nodes.length / columns)
  const scale = window.devicePixelRatio || 1
  canvas.width = wide * scale
  canvas.height = rows * size * scale
  canvas.style.height = `${rows * size}px`
  const pen = canvas.getContext('2d')
  pen.scale(scale, scale)
  cell = { size, columns }
  const on = byNode()
  const most = Math.max(1, ...on.map(all => all.length))
  const shades = [['runs', 'held'], ['moving', 'moving'], ['waits', 'waits'], ['paused', 'paused'], ['hung', 'paused'], ['down', 'lost']]
  for (const n of state.nodes) {
    const [x, y] = [(n.i % columns) * size, Math.floor(n.i / columns) * size]
    const lease = n.lease === 'held' ? 'edge' : n.lease
    pen.fillStyle = colour('card')
    pen.fillRect(x + 1, y + 1, size - 3, size - 3)
    let height = size - 5
    for (const [what, shade] of shades) {
      const part = on[n.i].filter(g => g.state === what).length
      if (!part) continue
      const tall = ((size - 7) * part) / most
      height -= tall
      pen.fillStyle = colour(shade)
      pen.fillRect(x + 3, y + 2 + height, size - 7, tall)
    }
    pen.lineWidth = n.leads || state.chosen?.node === n.i || lease !== 'edge' ? 3 : 1
    pen.strokeStyle = state.chosen?.node === n.i || n.leads ? colour('blue') : colour(lease)
    pen.strokeRect(x + 1.5, y + 1.5, size - 4, size - 4)
    if (n.out.length) {
      pen.fillStyle = colour('lost')
      pen.fillRect(x + size - 10, y + 4, 5, 5)
    }
  }
}

$('map').addEventListener('click', event => {
  const i = Math.floor(event.offsetY / cell.size) * cell.columns + Math.floor(event.offsetX / cell.size)
  if (state.nodes[i]) choose({ node: i })
})
$('map').addEventListener('mousemove', event => {
  const i = Math.floor(event.offsetY / cell.size) * cell.columns + Math.floor(event.offsetX / cell.size)
  const n = state.nodes[i]
  $('map').title = n ? `${n.name}: ${leaseWords[n.lease]}${n.leads ? ', leads' : ''}` : ''
})
window.addEventListener('resize', () => { if (state.summary) drawNodes() })

// What happened.

const words = {
  'in.power_on': 'power on', 'in.power_off': 'power off', 'in.net_off': 'cable out', 'in.net_on': 'cable in', 'in.shutdown': 'shutdown', 'in.reboot': 'reboot',
  'svc.start': 'runs', 'svc.stop': 'is stopped', 'svc.start_fail': 'does not start', 'svc.stop_fail': 'does not stop', 'svc.lost': 'is gone with its node',
  'svc.pause': 'is paused', 'svc.thaw': 'goes on', 'svc.died': 'has died', 'svc.destroyed': 'its old copy is destroyed', 'ha.refused': 'refused',
  'svc.migrate': 'has moved, running, from', 'svc.relocate': 'has moved, stopped, from', 'svc.move_fail': 'its move failed', 'svc.recover': 'is recovered from',
  'svc.norecover': 'cannot be recovered yet', 'svc.error': 'is in error, was', 'svc.unmanaged': 'HA lets go of it', 'node.fence_req': 'is committed lost',
  'node.fence_ok': 'its guests are safe to recover', 'node.selffence': 'makes its guests safe:', 'node.off': 'is off after', 'node.state': 'is', 'ha.disarmed': 'HA is disarmed', 'ha.armed': 'HA is armed',
}
const bad = ['svc.lost', 'svc.died', 'svc.start_fail', 'svc.stop_fail', 'svc.move_fail', 'svc.error', 'svc.norecover', 'node.fence_req', 'node.selffence', 'svc.pause', 'ha.refused']
const good = ['svc.start', 'svc.recover', 'svc.thaw', 'svc.migrate', 'svc.relocate']

function entry([at, kind, service, node, extra]) {
  const shade = kind.startsWith('in.') ? 'k-in' : bad.includes(kind) ? 'k-bad' : good.includes(kind) ? 'k-good' : 'k-state'
  let text
  if (kind === 'svc.state') text = `${service} on ${node}: ${extra}`
  else if (kind === 'in.cmd') text = `you: ${service ? `${service} ` : ''}${extra}`
  else if (kind.startsWith('in.')) text = `you: ${node} ${words[kind]}`
  else text = [service, service ? words[kind] : null, service && node ? (extra ? `${extra} to ${node}` : `on ${node}`) : null, ...(service ? [] : [node, words[kind], extra])].filter(Boolean).join(' ')
  return make('li', { className: shade }, make('time', {}, at.toFixed(2)), make('span', {}, text))
}

function drawLog() {
  const only = $('reasons').checked
  const lines = only ? state.lines.filter(l => l[1] === 'svc.state') : state.lines
  $('log').replaceChildren(...lines.slice(-300).reverse().map(entry))
}
$('reasons').addEventListener('change', drawLog)

// What is chosen, and what can be done to it.

function choose(what) {
  state.chosen = what
  state.tale = null
  drawNodes()
  drawChosen()
  if (what?.sid) tell(what.sid).catch(error => toast(error.message))
}

const button = (label, words, className = '') => make('button', { textContent: label, className, on: () => act(words) })
const acts = (...children) => make('div', { className: 'acts' }, ...children)

function field(label, id, value, width = '5em') {
  const input = make('input', { id, value })
  input.style.width = width
  return make('label', {}, label, input)
}

let drawn = ''
/** The panel is drawn anew only when it would look otherwise: what its user has begun to fill in stays. */
function drawChosen() {
  const chosen = state.chosen
  if (chosen?.sid) {
    drawn = ''
    return drawTale()
  }
  const node = chosen && state.nodes[chosen.node]
  const now = JSON.stringify(node ? [node, mapped(node).map(g => [g.sid, g.state])] : [state.known.scenario, state.summary?.rules, state.nodes.length, state.guests.length])
  if (now === drawn) return
  drawn = now
  if (node) drawNodePanel(node)
  else drawClusterPanel()
}

/** The guests of a node, where nodes are too many to show theirs. */
const mapped = n => (state.nodes.length > CARDS ? state.guests.filter(g => g.node === n.i) : [])
const back = () => make('button', { textContent: '← cluster', on: () => choose(null) })

function drawNodePanel(n) {
  const name = n.name
  const time = () => $('for').value || '5'
  const timed = (label, words) => make('button', { textContent: label, on: () => act(`${words} ${name} ${time()}`) })
  const other = () => $('other').value
  const off = n.out.includes('power')
  $('chosen').replaceChildren(
    make('h2', {}, `Node ${name}`, back()),
    make('p', {}, `${leaseWords[n.lease]}${n.leads ? ', leads the cluster' : ''}; the manager says: ${n.status || 'nothing yet'}`),
    acts(off ? button('Plug in', `power ${name} on`) : button('Pull the plug', `power ${name} off`, 'bad'),
      n.out.includes('cable') ? button('Cable in', `network ${name} on`) : button('Cable out', `network ${name} off`, 'bad'),
      button('Shut down', `shutdown ${name}`), button('Reboot', `reboot ${name}`)),
    make('div', { className: 'guests' }, ...mapped(n).map(g => make('button', { className: `guest ${g.state}`, textContent: g.sid, on: () => choose({ sid: g.sid }) }))),
    make('h4', {}, 'In service'),
    acts(button('Maintenance on', `crm ${name} enable-node-maintenance`), button('off', `crm ${name} disable-node-maintenance`),
      ...(n.leads ? [button('Step down as leader', `crm ${name} stop`)] : []), ...(n.lease === 'lost' && off ? [button('Confirm: it is off', `confirm-off ${name}`)] : [])),
    make('h4', {}, 'Stand still, or be killed, for so many seconds'),
    acts(field('', 'for', '5'), timed('Daemon pauses', 'pause daemon'), timed('Fence process pauses', 'pause fence'), timed('Machine pauses', 'pause machine'),
      timed('Kill daemon', 'kill daemon'), timed('Kill fence process', 'kill fence')),
    make('h4', {}, 'Links to another node'),
    acts(make('select', { id: 'other', 'aria-label': 'Other node' }, ...state.nodes.filter(o => o.i !== n.i).map(o => make('option', {}, o.name))),
      make('button', { textContent: 'Cut', on: () => act(`cut ${name} ${other()}`) }),
      make('button', { textContent: 'It does not hear me', on: () => act(`cut ${name} ${other()} one-way`) }),
      button('Mend all', 'mend')),
  )
}

function drawTale() {
  const g = state.guests.find(guest => guest.sid === state.chosen.sid)
  if (!g) return
  const t = state.tale
  const to = () => $('to').value
  const before = $('to')?.value
  if (document.activeElement?.id === 'to') return
  const names = state.nodes.filter(n => n.i !== g.node).map(n => make('option', { selected: n.name === before }, n.name))
  const o = t?.outage
  $('chosen').replaceChildren(
    make('h2', {}, `Guest ${g.sid}`, back()),
    make('p', {}, `${g.state} on ${state.nodes[g.node]?.name ?? '?'}; wanted: ${g.want || 'not under HA'}; HA: ${g.ha || '–'}`),
    make('h4', {}, 'Why is it here?'),
    make('div', { className: 'why', id: 'why' }, t ? t.reason || 'HA does not care for it' : '…'),
    ...(o ? [make('dl', {}, make('dt', {}, 'record'), make('dd', {}, t.owner ? `${t.owner[0]} owns it, epoch ${t.owner[1]}${t.running ? ', may run' : ''}${t.armed ? ', guarded' : ''}` : '–'),
      make('dt', {}, 'outages'), make('dd', {}, o.count ? `${o.count}, ${seconds(o.total, 1)} in all, the last ${seconds(o.last, 1)}` : 'none'),
      ...(o.since === null ? [] : [make('dt', {}, 'out since'), make('dd', { className: 'k-bad' }, seconds(o.since, 1))]))] : []),
    acts(...['started', 'stopped', 'disabled', 'ignored'].map(w => button(w, `service ${g.sid} ${w}`)),
      button('its process dies', `service ${g.sid} die`, 'bad'), button('hangs', `service ${g.sid} hang`, 'bad'), button('Take out of HA', `service ${g.sid} delete`)),
    acts(make('select', { id: 'to', 'aria-label': 'Target' }, ...names),
      make('button', { textContent: 'Migrate', on: () => act(`service ${g.sid} migrate ${to()}`) }),
      make('button', { textContent: 'Relocate', on: () => act(`service ${g.sid} relocate ${to()}`) })),
    make('h4', {}, 'Its history'),
    make('ol', { className: 'history' }, ...(t?.history ?? []).map(entry)),
  )
}

function drawClusterPanel() {
  const half = state.nodes.slice(0, Math.floor(state.nodes.length / 2)).map(n => n.name).join(',')
  const rules = state.summary?.rules ?? []
  const used = new Set(state.guests.map(g => g.sid))
  let free = 100
  while (used.has(`vm:${free}`) || used.has(`ct:${free}`)) free++
  const rule = () => {
    const [kind, sids, rest] = [$('kind').value, $('sids').value.trim(), $('rest').value.trim()]
    const id = `rule${Math.round(state.summary.now * 1000)}`
    const tail = { together: 'affinity=positive', apart: 'affinity=negative', on: `nodes=${rest}`, 'only on': `nodes=${rest} strict=1` }[kind]
    act(`rule ${kind === 'together' || kind === 'apart' ? 'resource' : 'node'}-affinity ${id} resources=${sids} ${tail}`)
  }
  $('chosen').replaceChildren(
    make('h2', {}, 'The cluster'),
    make('p', {}, 'Choose a node to pull its plug, or a guest to see why it is where it is.'),
    make('h4', {}, 'Network and store'),
    acts(button('Split in two halves', `split ${half}`, 'bad'), button('Lossy network', 'weather 200 100 50'), button('Mend', 'mend'), button('Store stalls for 5 s', 'stall 5')),
    make('h4', {}, 'HA as a whole'),
    acts(button('Disarm (freeze)', 'crm n1 disarm-ha freeze'.replace('n1', state.nodes[0]?.name ?? 'n1')), button('Arm', `crm ${state.nodes[0]?.name ?? 'n1'} arm-ha`),
      ...['fast', 'default', 'wan'].map(p => button(`profile ${p}`, `profile ${p}`))),
    make('h4', {}, 'Add a guest'),
    acts(field('', 'new', `vm:${free}`), make('select', { id: 'where', 'aria-label': 'On node' }, ...state.nodes.map(n => make('option', {}, n.name))),
      make('button', { textContent: 'Add', on: () => act(`service ${$('new').value} add ${$('where').value} started`) })),
    make('h4', {}, 'Rules'),
    ...rules.map(([id, text]) => acts(make('span', {}, text), button('remove', `unrule ${id}`))),
    acts(field('', 'sids', state.guests.slice(0, 2).map(g => g.sid).join(','), '9em'),
      make('select', { id: 'kind', 'aria-label': 'Rule' }, ...['together', 'apart', 'on', 'only on'].map(k => make('option', {}, k))),
      field('', 'rest', 'n1', '5em'), make('button', { textContent: 'Make the rule', on: rule })),
    make('h4', {}, 'Anything else, as a scenario says it'),
    acts(field('', 'words', '', '16em'), make('button', { textContent: 'Do it', on: () => act($('words').value) })),
  )
}

// Time.

$('run').addEventListener('click', () => time(state.speed === null ? `run ${$('speed').value}` : 'pause'))
$('speed').addEventListener('change', () => { if (state.speed !== null) time(`run ${$('speed').value}`) })
$('event').addEventListener('click', () => time('step'))
const seek = to => time(`seek ${Math.max(0, to).toFixed(3)}`)
for (const b of document.querySelectorAll('[data-step]')) b.addEventListener('click', () => seek(state.summary.now + Number(b.dataset.step)))
for (const b of document.querySelectorAll('[data-back]')) b.addEventListener('click', () => seek(state.summary.now - Number(b.dataset.back)))
let dragging = false
$('seek').addEventListener('input', () => { dragging = true })
$('seek').addEventListener('change', () => { dragging = false; seek(Number($('seek').value)) })
$('open').addEventListener('change', async () => {
  const [file] = $('open').files
  if (file) await send('/api/open', await file.text())
  $('open').value = ''
})

/** Asks again and again: often while time passes. */
async function follow() {
  try {
    await refresh()
    $('clock').classList.remove('k-bad')
  } catch (error) {
    $('clock').classList.add('k-bad')
    toast(`The simulator does not answer: ${error.message}`)
  }
  setTimeout(follow, state.speed !== null || state.seek !== null ? (state.guests.length > 5000 ? 600 : 200) : 1000)
}
follow()
