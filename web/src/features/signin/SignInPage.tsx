import {
  ActionGroup,
  Alert,
  Button,
  Card,
  CardBody,
  Form,
  FormGroup,
  FormSelect,
  FormSelectOption,
  TextInput,
  Title,
} from '@patternfly/react-core'
import { useMutation, useQuery } from '@tanstack/react-query'
import { useNavigate, useRouter, useSearch } from '@tanstack/react-router'
import { type FormEvent, useState } from 'react'
import { queries } from '../../api/queries'
import { expired } from '../../api/session'
import { signIn } from '../../api/signIn'
import { useStore } from '../../api/store'
import { links } from '../../app/links'
import { ErrorNotice } from '../../ui/ErrorNotice'
import { Logo } from '../../ui/Logo'
import './signin.css'

const DEFAULT_REALM = 'pam'

export function SignInPage() {
  const navigate = useNavigate()
  const router = useRouter()
  const { back } = useSearch({ from: '/signin' })
  const realms = useQuery(queries.realms())
  const ended = useStore(expired)
  const [user, setUser] = useState('')
  const [password, setPassword] = useState('')
  const [chosen, setRealm] = useState<string>()
  const proposed = realms.data?.find((r) => r.default)?.realm ?? realms.data?.[0]?.realm ?? DEFAULT_REALM
  const realm = chosen ?? proposed
  const attempt = useMutation({
    mutationFn: () => signIn(user, realm, password),
    onSuccess: () => (back ? router.history.push(back) : navigate(links.cluster())),
  })
  const submit = (event: FormEvent) => {
    event.preventDefault()
    attempt.mutate()
  }

  return (
    <main className="signin">
      <Card className="signin-card" isLarge>
        <CardBody>
          <Logo />
          <Title headingLevel="h1" size="xl" className="signin-title">
            Sign in
          </Title>
          {ended && !attempt.error && (
            <Alert variant="info" isInline title="Your session has ended. Sign in again." />
          )}
          {attempt.error && <ErrorNotice title="Could not sign in" error={attempt.error} />}
          {realms.error && !attempt.error && (
            <ErrorNotice
              title="This node does not answer"
              error={realms.error}
              onRetry={() => realms.refetch()}
            />
          )}
          <Form onSubmit={submit}>
            <FormGroup label="User name" isRequired fieldId="user">
              <TextInput
                id="user"
                name="username"
                autoComplete="username"
                autoFocus
                isRequired
                value={user}
                onChange={(_, value) => setUser(value)}
              />
            </FormGroup>
            <FormGroup label="Password" isRequired fieldId="password">
              <TextInput
                id="password"
                name="password"
                type="password"
                autoComplete="current-password"
                isRequired
                value={password}
                onChange={(_, value) => setPassword(value)}
              />
            </FormGroup>
            <FormGroup label="Realm" fieldId="realm">
              <FormSelect id="realm" value={realm} onChange={(_, value) => setRealm(value)}>
                {(realms.data ?? [{ realm: DEFAULT_REALM, comment: '' }]).map((r) => (
                  <FormSelectOption
                    key={r.realm}
                    value={r.realm}
                    label={r.comment ? `${r.comment} (${r.realm})` : r.realm}
                  />
                ))}
              </FormSelect>
            </FormGroup>
            <ActionGroup>
              <Button
                type="submit"
                isBlock
                isLoading={attempt.isPending}
                isDisabled={attempt.isPending || !user || !password}
              >
                Sign in
              </Button>
            </ActionGroup>
          </Form>
          <p className="signin-host">{location.host}</p>
        </CardBody>
      </Card>
    </main>
  )
}
