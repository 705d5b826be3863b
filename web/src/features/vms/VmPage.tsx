import {
  Alert,
  Bullseye,
  Flex,
  PageSection,
  Spinner,
  Tab,
  Tabs,
  TabTitleText,
  Title,
} from '@patternfly/react-core'
import { Link, useNavigate } from '@tanstack/react-router'
import { lazy, Suspense } from 'react'
import { links, VM_TABS, type VmTab } from '../../app/links'
import type { Cluster, Guest } from '../../model/cluster'
import { useCluster } from '../../model/useCluster'
import { NotFound } from '../../shell/NotFound'
import { ReadError } from '../../ui/ErrorNotice'
import { GuestLabel, HaLabel } from '../../ui/state'
import { ScopedTasks } from '../tasks/ScopedTasks'
import { VmActions } from './VmActions'
import { VmHardware } from './VmHardware'
import { VmSummary } from './VmSummary'
import './vms.css'

// noVNC comes only when a screen is looked at.
const VmScreen = lazy(() => import('./VmScreen'))

const PART = 'vm-part'
const TITLES: Record<VmTab, string> = {
  summary: 'Summary',
  screen: 'Screen',
  hardware: 'Hardware',
  tasks: 'Tasks',
}

export function VmPage({ vmid, tab }: { vmid: number; tab: VmTab }) {
  const { cluster, error, retry } = useCluster()
  const guest = cluster?.guests.find((g) => g.vmid === vmid)
  if (cluster && !guest) return <NotFound what={`VM ${vmid}`} />
  return (
    <>
      {error && (
        <PageSection>
          <ReadError title="Could not read the cluster's state" error={error} onRetry={retry} />
        </PageSection>
      )}
      {cluster && guest ? (
        <VmBody cluster={cluster} guest={guest} tab={tab} />
      ) : (
        !error && (
          <Bullseye>
            <Spinner aria-label="Reading the VM" />
          </Bullseye>
        )
      )}
    </>
  )
}

function VmBody({ cluster, guest, tab }: { cluster: Cluster; guest: Guest; tab: VmTab }) {
  const navigate = useNavigate()
  const { vmid, name, node, status, ha } = guest
  const host = cluster.nodes.find((n) => n.name === node)
  const away = host !== undefined && host.state !== 'online'
  return (
    <>
      <PageSection className="vm-head">
        <Flex alignItems={{ default: 'alignItemsCenter' }}>
          <Title headingLevel="h1">
            {name} <span className="muted">{vmid}</span>
          </Title>
          <GuestLabel status={status} />
          <span>
            on <Link {...links.node(node)}>{node}</Link>
          </span>
          {ha && (
            <span>
              HA <HaLabel state={ha} />
            </span>
          )}
        </Flex>
        {away && (
          <Alert variant="warning" isInline title={`Node ${node} is ${host.state}`}>
            {ha
              ? 'HA starts the guest on another node once it is certain that it no longer runs here.'
              : 'The guest is not under HA: it stays with its node until the node is back.'}
          </Alert>
        )}
        <VmActions guest={guest} cluster={cluster} />
        <Tabs
          aria-label="Parts of the VM"
          component="nav"
          activeKey={tab}
          onSelect={(event, key) => {
            event.preventDefault()
            navigate(links.vmTab(vmid, key as VmTab))
          }}
        >
          {VM_TABS.map((t) => (
            <Tab
              key={t}
              tabContentId={PART}
              eventKey={t}
              title={<TabTitleText>{TITLES[t]}</TabTitleText>}
              href={`/vms/${vmid}/${t}`}
            />
          ))}
        </Tabs>
      </PageSection>
      <PageSection isFilled id={PART} className={tab === 'screen' ? 'vm-screen' : ''}>
        {tab === 'summary' && <VmSummary guest={guest} away={away} />}
        {tab === 'hardware' && <VmHardware guest={guest} />}
        {tab === 'tasks' &&
          (away ? (
            <p className="muted">They show when the node is back.</p>
          ) : (
            <ScopedTasks node={node} vmid={vmid} />
          ))}
        {tab === 'screen' && (
          <Suspense fallback={<Spinner aria-label="Loading the screen" />}>
            <VmScreen guest={guest} away={away} />
          </Suspense>
        )}
      </PageSection>
    </>
  )
}
