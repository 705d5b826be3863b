import {
  EmptyState,
  EmptyStateActions,
  EmptyStateBody,
  EmptyStateFooter,
  PageSection,
} from '@patternfly/react-core'
import { Link } from '@tanstack/react-router'
import { links } from '../app/links'

export function NotFound({ what = 'This page' }: { what?: string }) {
  return (
    <PageSection isFilled>
      <EmptyState titleText={`${what} does not exist`} headingLevel="h1">
        <EmptyStateBody>It may have been removed, or the address is not right.</EmptyStateBody>
        <EmptyStateFooter>
          <EmptyStateActions>
            <Link {...links.cluster()}>Go to the cluster</Link>
          </EmptyStateActions>
        </EmptyStateFooter>
      </EmptyState>
    </PageSection>
  )
}
