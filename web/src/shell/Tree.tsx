import { Button, SearchInput, Skeleton } from '@patternfly/react-core'
import AngleDownIcon from '@patternfly/react-icons/dist/esm/icons/angle-down-icon'
import AngleRightIcon from '@patternfly/react-icons/dist/esm/icons/angle-right-icon'
import ClusterIcon from '@patternfly/react-icons/dist/esm/icons/cluster-icon'
import { Link } from '@tanstack/react-router'
import { useState } from 'react'
import { links } from '../app/links'
import type { Guest, Node } from '../model/cluster'
import { filterTree } from '../model/tree'
import { useCluster } from '../model/useCluster'
import { GuestIcon, NodeIcon } from '../ui/state'

/** With more guests than this, a node shows its own only when asked to. */
const OPEN_UP_TO = 300

/** The nodes and their guests, as they are now. */
export function Tree() {
  const { cluster } = useCluster()
  const [filter, setFilter] = useState('')
  const [toggled, setToggled] = useState<ReadonlySet<string>>(new Set())
  const toggle = (node: string) => {
    const next = new Set(toggled)
    if (!next.delete(node)) next.add(node)
    setToggled(next)
  }
  if (!cluster) return <Skeleton screenreaderText="Reading the cluster" />
  const nodes = filterTree(cluster.nodes, filter)
  const openAtFirst = nodes.reduce((n, node) => n + node.guests.length, 0) <= OPEN_UP_TO
  return (
    <nav aria-label="Nodes and guests" className="tree">
      <SearchInput
        aria-label="Filter nodes and guests"
        placeholder="Filter"
        value={filter}
        onChange={(_, value) => setFilter(value)}
        onClear={() => setFilter('')}
      />
      <Link {...links.cluster()} className="tree-link tree-root" activeOptions={{ exact: true }}>
        <ClusterIcon />
        <span className="tree-name">{cluster.health.name ?? 'Cluster'}</span>
      </Link>
      <ul>
        {nodes.map((node) => (
          <NodeBranch
            key={node.name}
            node={node}
            open={openAtFirst !== toggled.has(node.name)}
            onToggle={() => toggle(node.name)}
          />
        ))}
      </ul>
      {nodes.length === 0 && <p className="muted tree-empty">Nothing matches.</p>}
    </nav>
  )
}

function NodeBranch({ node, open, onToggle }: { node: Node; open: boolean; onToggle: () => void }) {
  const { name, state, guests } = node
  return (
    <li>
      <div className="tree-row">
        <Button
          variant="plain"
          className="tree-toggle"
          aria-label={`${open ? 'Collapse' : 'Expand'} ${name}`}
          aria-expanded={open}
          isDisabled={guests.length === 0}
          onClick={onToggle}
          icon={open && guests.length > 0 ? <AngleDownIcon /> : <AngleRightIcon />}
        />
        <Link {...links.node(name)} className="tree-link" data-state={state}>
          <NodeIcon state={state} />
          <span className="tree-name">{name}</span>
          {state !== 'online' && <span className="tree-note">{state}</span>}
        </Link>
      </div>
      {open && guests.length > 0 && (
        <ul>
          {guests.map((guest) => (
            <GuestLeaf key={guest.vmid} guest={guest} />
          ))}
        </ul>
      )}
    </li>
  )
}

function GuestLeaf({ guest: { vmid, name, status } }: { guest: Guest }) {
  return (
    <li>
      <Link {...links.vm(vmid)} className="tree-link tree-guest" data-state={status}>
        <GuestIcon status={status} />
        <span className="tree-id">{vmid}</span>
        <span className="tree-name">{name}</span>
      </Link>
    </li>
  )
}
