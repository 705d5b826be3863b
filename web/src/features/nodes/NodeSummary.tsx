import { Card, CardBody, CardTitle, Grid, GridItem } from '@patternfly/react-core'
import type { NodeStatus } from '../../api/types'
import type { Node } from '../../model/cluster'
import { Facts } from '../../ui/Facts'
import { bytes, duration, percent } from '../../ui/format'
import { Meter, shareOf } from '../../ui/Meter'

export function NodeSummary({ node, status }: { node: Node; status: NodeStatus | undefined }) {
  const { cpuinfo, memory, rootfs, loadavg } = status ?? {}
  const cpu = status?.cpu ?? node.cpu
  const cpus = cpuinfo?.cpus ?? node.maxcpu
  const used = memory?.used ?? node.mem
  const total = memory?.total ?? node.maxmem
  return (
    <Grid hasGutter>
      <GridItem lg={6}>
        <Card isFullHeight isCompact>
          <CardTitle component="h2">Load</CardTitle>
          <CardBody className="meters">
            <Meter label="CPU" title="CPU" share={cpu} text={`${percent(cpu)} of ${cpus ?? '?'} CPUs`} />
            <Meter
              label="Memory"
              title="Memory"
              share={shareOf(used, total)}
              text={`${bytes(used)} of ${bytes(total)}`}
            />
            {rootfs && (
              <Meter
                label="Root file system"
                title="Root file system"
                share={shareOf(rootfs.used, rootfs.total)}
                text={`${bytes(rootfs.used)} of ${bytes(rootfs.total)}`}
              />
            )}
          </CardBody>
        </Card>
      </GridItem>
      <GridItem lg={6}>
        <Card isFullHeight isCompact>
          <CardTitle component="h2">System</CardTitle>
          <CardBody>
            <Facts
              label="System"
              facts={[
                ['Address', node.ip],
                ['Uptime', duration(status?.uptime ?? node.uptime)],
                ['Load average', loadavg?.map((n) => Number(n).toFixed(2)).join(', ')],
                ['Processor', processor(status)],
                ['Kernel', status?.['current-kernel']?.release ?? status?.kversion],
                ['Version', status?.pveversion],
              ]}
            />
          </CardBody>
        </Card>
      </GridItem>
    </Grid>
  )
}

function processor(status: NodeStatus | undefined): string | undefined {
  const { model, cpus } = status?.cpuinfo ?? {}
  if (!model) return undefined
  return cpus ? `${cpus} × ${model}` : model
}
