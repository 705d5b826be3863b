import {
  Masthead,
  MastheadBrand,
  MastheadContent,
  MastheadLogo,
  MastheadMain,
  MastheadToggle,
  Page,
  PageSidebar,
  PageSidebarBody,
  PageToggleButton,
  SkipToContent,
} from '@patternfly/react-core'
import { Link, Outlet, useLocation, useNavigate } from '@tanstack/react-router'
import { type AnchorHTMLAttributes, useEffect } from 'react'
import { session } from '../api/session'
import { keepFresh } from '../api/signIn'
import { useStore } from '../api/store'
import { links } from '../app/links'
import { useClusterEvents } from '../events/useClusterEvents'
import { TaskPanel } from '../features/tasks/TaskPanel'
import { Logo } from '../ui/Logo'
import { Toasts } from '../ui/Toasts'
import { HealthBar } from './HealthBar'
import { NodeDownNotice } from './NodeDownNotice'
import { Tree } from './Tree'
import { UserMenu } from './UserMenu'
import './shell.css'

const MAIN = 'main-content'

/** What surrounds every page of someone signed in: health above, the tree at the left, tasks below. */
export function Shell() {
  useClusterEvents()
  useEffect(keepFresh, [])
  useSignOutElsewhere()

  const masthead = (
    <Masthead>
      <MastheadMain>
        <MastheadToggle>
          <PageToggleButton isHamburgerButton aria-label="Navigation" />
        </MastheadToggle>
        <MastheadBrand>
          <MastheadLogo component={HomeLink}>
            <Logo />
          </MastheadLogo>
        </MastheadBrand>
      </MastheadMain>
      <MastheadContent>
        <HealthBar />
        <UserMenu />
      </MastheadContent>
    </Masthead>
  )
  const sidebar = (
    <PageSidebar>
      <PageSidebarBody isFilled>
        <Tree />
      </PageSidebarBody>
    </PageSidebar>
  )

  return (
    <div className="shell">
      <Page
        masthead={masthead}
        sidebar={sidebar}
        isManagedSidebar
        isContentFilled
        mainContainerId={MAIN}
        skipToContent={<SkipToContent href={`#${MAIN}`}>Skip to content</SkipToContent>}
      >
        <NodeDownNotice />
        <Outlet />
      </Page>
      <TaskPanel />
      <Toasts />
    </div>
  )
}

/** The logo as a link to the cluster's page. */
function HomeLink({ className = '', children }: AnchorHTMLAttributes<HTMLAnchorElement>) {
  return (
    <Link className={className} {...links.cluster()} aria-label="Stead: cluster">
      {children}
    </Link>
  )
}

/** Goes to the sign-in page when the session ends: here, in another tab, or by its age. */
function useSignOutElsewhere(): void {
  const signedIn = useStore(session) !== null
  const navigate = useNavigate()
  const here = useLocation({ select: (l) => l.href })
  useEffect(() => {
    if (!signedIn) navigate(links.signIn(here))
  }, [signedIn, navigate, here])
}
