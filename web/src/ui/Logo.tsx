/** The mark and the name. */
export function Logo() {
  return (
    <span className="logo">
      <svg viewBox="0 0 32 32" width="28" height="28" aria-hidden="true">
        <rect width="32" height="32" rx="7" className="logo-ground" />
        <path d="M8 11.500 16 7l8 4.500-8 4.500z" fill="#fff" />
        <path d="m8 16 8 4.500L24 16" className="logo-line" />
        <path d="m8 20.500 8 4.500 8-4.500" className="logo-line logo-line-far" />
      </svg>
      <span className="logo-name">Stead</span>
    </span>
  )
}
