/** Dark or light as the system says, and as it changes. */
export function followSystemTheme(): void {
  const dark = window.matchMedia('(prefers-color-scheme: dark)')
  const apply = () => document.documentElement.classList.toggle('pf-v6-theme-dark', dark.matches)
  dark.addEventListener('change', apply)
  apply()
}
