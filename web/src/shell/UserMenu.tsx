import { Dropdown, DropdownItem, DropdownList, MenuToggle } from '@patternfly/react-core'
import UserIcon from '@patternfly/react-icons/dist/esm/icons/user-icon'
import { useState } from 'react'
import { endSession, session } from '../api/session'
import { useStore } from '../api/store'

export function UserMenu() {
  const [open, setOpen] = useState(false)
  const user = useStore(session)?.username ?? ''
  return (
    <Dropdown
      isOpen={open}
      onOpenChange={setOpen}
      onSelect={() => setOpen(false)}
      popperProps={{ position: 'right' }}
      toggle={(ref) => (
        <MenuToggle
          ref={ref}
          variant="plainText"
          icon={<UserIcon />}
          isExpanded={open}
          onClick={() => setOpen(!open)}
          aria-label={`User ${user}`}
        >
          <span className="user-name">{user}</span>
        </MenuToggle>
      )}
    >
      <DropdownList>
        <DropdownItem key="signout" onClick={endSession}>
          Sign out
        </DropdownItem>
      </DropdownList>
    </Dropdown>
  )
}
