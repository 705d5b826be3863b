import '@patternfly/react-core/dist/styles/base.css'
import './app/console.css'
import './ui/ui.css'
import { QueryClientProvider } from '@tanstack/react-query'
import { RouterProvider } from '@tanstack/react-router'
import { StrictMode } from 'react'
import { createRoot } from 'react-dom/client'
import { session } from './api/session'
import { forgetWithUser } from './app/forget'
import { queryClient } from './app/queryClient'
import { router } from './app/router'
import { followSystemTheme } from './app/theme'

followSystemTheme()
forgetWithUser(queryClient, session)

const root = document.getElementById('root')
if (!root) throw new Error('index.html has no #root')
createRoot(root).render(
  <StrictMode>
    <QueryClientProvider client={queryClient}>
      <RouterProvider router={router} />
    </QueryClientProvider>
  </StrictMode>,
)
