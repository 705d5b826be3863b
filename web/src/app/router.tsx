import { createRootRoute, createRoute, createRouter, Outlet, redirect } from '@tanstack/react-router'
import { session } from '../api/session'
import { ClusterPage } from '../features/cluster/ClusterPage'
import { NodePage } from '../features/nodes/NodePage'
import { SignInPage } from '../features/signin/SignInPage'
import { VmPage } from '../features/vms/VmPage'
import { NotFound } from '../shell/NotFound'
import { Shell } from '../shell/Shell'
import { links, VM_TABS } from './links'

const root = createRootRoute({ component: Outlet, notFoundComponent: () => <NotFound /> })

const signIn = createRoute({
  getParentRoute: () => root,
  path: '/signin',
  validateSearch: (search: Record<string, unknown>): { back?: string } => {
    // Only places in this console: never a way to send people elsewhere.
    const { back } = search
    return typeof back === 'string' && /^\/(?![/\\])/.test(back) ? { back } : {}
  },
  component: SignInPage,
})

const shell = createRoute({
  getParentRoute: () => root,
  id: 'shell',
  beforeLoad: ({ location }) => {
    if (!session.get()) throw redirect(links.signIn(location.href))
  },
  component: Shell,
})

const cluster = createRoute({ getParentRoute: () => shell, path: '/', component: ClusterPage })

const node = createRoute({
  getParentRoute: () => shell,
  path: '/nodes/$node',
  component: function NodeRoute() {
    const { node: name } = node.useParams()
    return <NodePage name={name} key={name} />
  },
})

const vm = createRoute({
  getParentRoute: () => shell,
  path: '/vms/$vmid/$tab',
  component: function VmRoute() {
    const { vmid, tab } = vm.useParams()
    const known = VM_TABS.find((t) => t === tab)
    return known ? <VmPage vmid={Number(vmid)} tab={known} key={vmid} /> : <NotFound />
  },
})

const vmShort = createRoute({
  getParentRoute: () => shell,
  path: '/vms/$vmid',
  beforeLoad: ({ params }) => {
    throw redirect({ ...links.vmTab(Number(params.vmid), 'summary'), replace: true })
  },
})

export const router = createRouter({
  routeTree: root.addChildren([signIn, shell.addChildren([cluster, node, vmShort, vm])]),
  defaultPreload: false,
  scrollRestoration: false,
})

declare module '@tanstack/react-router' {
  interface Register {
    router: typeof router
  }
}
