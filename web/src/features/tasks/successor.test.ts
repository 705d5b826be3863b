import { expect, test } from 'vitest'
import { successorOf } from './successor'

const task = (type: string, id: string, starttime: number) => ({
  upid: `UPID:n1:1:1:${starttime.toString(16)}:${type}:${id}:root@pam:`,
  node: 'n1',
  pid: 1,
  pstart: 1,
  type,
  id,
  user: 'root@pam',
  starttime,
})
const wish = task('hamigrate', '100', 50)

test('the first task on the guest after the wish is what HA does about it', () => {
  const done = task('qmigrate', '100', 50)
  const tasks = [
    task('qmstart', '100', 60),
    task('vncproxy', '100', 50),
    done,
    task('qmstop', '100', 40),
    wish,
  ]
  expect(successorOf(wish.upid, tasks)).toBe(done)
})

test('tasks of other guests and tasks that are no wish have nothing to follow', () => {
  expect(successorOf(wish.upid, [task('qmigrate', '101', 55), wish])).toBeUndefined()
  expect(successorOf(task('qmstart', '100', 50).upid, [task('qmigrate', '100', 55)])).toBeUndefined()
})
