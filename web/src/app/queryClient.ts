import { QueryClient } from '@tanstack/react-query'

export const queryClient = new QueryClient({
  defaultOptions: {
    queries: {
      // What failed is read again at the next interval or event; the error shows at once.
      retry: false,
      staleTime: 1_000,
      // A browser's idea of being offline says nothing about the cluster's network.
      networkMode: 'always',
    },
    mutations: { retry: false, networkMode: 'always' },
  },
})
