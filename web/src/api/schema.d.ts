/**
 * What the endpoints that the console calls take. Made by `npm run api` from crates/api/openapi.json; not to be
 * edited. It stays whole, as it is made.
 *
 * Document: f3554cee88a6020d2c344cf6441ad62ba0b49278c7f7de6974e209228a128ae2
 */

export interface paths {
    "/version": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get: {
            parameters: {
                query?: never;
                header?: never;
                path?: never;
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            /** @description What clients decide by, and what this really is. */
                            data: {
                                /** @description The version of Proxmox VE's API that this is like. */
                                version: string;
                                /** @description Its first two parts. */
                                release: string;
                                /** @description Looks like a commit to clients; the daemon's version in hexadecimal. */
                                repoid: string;
                                /** @description The daemon's own version. */
                                stead: string;
                            };
                        };
                    };
                };
            };
        };
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/access/domains": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get: {
            parameters: {
                query?: never;
                header?: never;
                path?: never;
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            data: {
                                /** @description Its name. */
                                realm: string;
                                /** @description Its type. */
                                type: string;
                                /** @description For people. */
                                comment: string;
                                /**
                                 * @description It is the one that is offered first.
                                 * @enum {integer}
                                 */
                                default?: 0 | 1;
                            }[];
                        };
                    };
                };
            };
        };
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/access/ticket": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get?: never;
        put?: never;
        post: {
            parameters: {
                query?: never;
                header?: never;
                path?: never;
                cookie?: never;
            };
            requestBody: {
                content: {
                    "application/x-www-form-urlencoded": {
                        /** @description `user@realm`, or the user with `realm` beside it. */
                        username: string;
                        /** @description The password, or a ticket that is still good. */
                        password: string;
                        /** @description The realm, if the user's name has none. */
                        realm?: string;
                        /** @description Only check the ticket given as password, and these privileges on `path`. */
                        privs?: string;
                        /** @description See `privs`. */
                        path?: string;
                        /**
                         * @description Tickets have one format only; older clients ask for it by name.
                         * @default 1
                         */
                        "new-format"?: boolean;
                    };
                };
            };
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            /** @description Who has signed in. With a ticket, unless only privileges were asked about. Contains secrets. */
                            data: {
                                /** @description The user. */
                                username: string;
                                /** @description For the cookie PVEAuthCookie. */
                                ticket?: string;
                                /** @description For the header of that name, with every change. */
                                CSRFPreventionToken?: string;
                                /** @description What a console shows at all: privileges held at the top of each kind of object. */
                                cap?: {
                                    [key: string]: {
                                        [key: string]: 0 | 1;
                                    };
                                };
                                /** @description The cluster's name. */
                                clustername?: string;
                            };
                        };
                    };
                };
            };
        };
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/cluster/status": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get: {
            parameters: {
                query?: never;
                header?: never;
                path?: never;
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            data: {
                                /**
                                 * @description What it is about.
                                 * @enum {string}
                                 */
                                type: "cluster" | "node";
                                /** @description `cluster`, or `node/NAME`. */
                                id: string;
                                /** @description The cluster's or the node's name. */
                                name: string;
                                /** @description Of the cluster: how many nodes it has. */
                                nodes?: number;
                                /**
                                 * @description Of the cluster: a majority is in contact.
                                 * @enum {integer}
                                 */
                                quorate?: 0 | 1;
                                /** @description Of the cluster: the configuration's revision. */
                                version?: number;
                                /**
                                 * Format: pve-node
                                 * @description Of the cluster: the node that leads it, if one is known.
                                 */
                                leader?: string;
                                /**
                                 * @description Of the cluster: it survives the loss of any one node. Not there before that has been found out.
                                 * @enum {integer}
                                 */
                                survives?: 0 | 1;
                                /** @description Of the cluster: the same in one line, for people. */
                                outlook?: string;
                                /** @description Of the cluster: how its votes lie over sites or racks, in one line, where nodes are said to stand at several. */
                                spread?: string;
                                /** @description Of the cluster: its epoch, which an operator raises when a majority is lost for good. */
                                epoch?: string;
                                /** @description Of the cluster: what somebody should look at, a line each; not there where all is well. */
                                warnings?: string[];
                                /** @description Of a node: its number. */
                                nodeid?: number;
                                /** @description Of a node: its address. */
                                ip?: string;
                                /** @description Of a node: its port. */
                                port?: number;
                                /**
                                 * @description Of a node: it is the one that answers.
                                 * @enum {integer}
                                 */
                                local?: 0 | 1;
                                /**
                                 * @description Of a node: it takes part and reports.
                                 * @enum {integer}
                                 */
                                online?: 0 | 1;
                                /** @description Of a node: always empty; clients expect it. */
                                level?: string;
                                /**
                                 * @description Of a node: committed lost, so that its guests are started elsewhere.
                                 * @enum {integer}
                                 */
                                lost?: 0 | 1;
                                /**
                                 * @description Of a node: it votes.
                                 * @enum {integer}
                                 */
                                votes?: 0 | 1;
                                /**
                                 * Format: stead-domain
                                 * @description Of a node: the site that it stands at.
                                 */
                                site?: string;
                                /**
                                 * Format: stead-domain
                                 * @description Of a node: the rack that it stands in.
                                 */
                                rack?: string;
                            }[];
                        };
                    };
                };
            };
        };
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/cluster/ha/status/current": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get: {
            parameters: {
                query?: never;
                header?: never;
                path?: never;
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            data: {
                                /** @description `quorum`, `master`, `lrm:NODE`, `service:SID`. */
                                id: string;
                                /**
                                 * @description What it is about.
                                 * @enum {string}
                                 */
                                type: "quorum" | "master" | "lrm" | "service" | "fencing";
                                /** @description Where; empty where that is not known. */
                                node: string;
                                /** @description For people. */
                                status: string;
                                /**
                                 * @description Of the quorum: a majority is in contact.
                                 * @enum {integer}
                                 */
                                quorate?: 0 | 1;
                                /**
                                 * @description Of the quorum: the cluster survives the loss of any one node. Not there before that has been found out.
                                 * @enum {integer}
                                 */
                                survives?: 0 | 1;
                                /** @description Of the quorum: the same in one line, for people. */
                                outlook?: string;
                                /** @description Of the master: seconds since 1970. */
                                timestamp?: number | null;
                                /** @description Of a guest: its name under HA. */
                                sid?: string;
                                /** @description Of a guest: the manager's state of it. */
                                state?: string;
                                /** @description Of a guest: the manager's state of it. */
                                crm_state?: string;
                                /** @description Of a guest: what HA is asked to keep it in. */
                                request_state?: string;
                                /** @description Of a guest: tries on the same node. */
                                max_restart?: number;
                                /** @description Of a guest: tries on other nodes. */
                                max_relocate?: number;
                                /**
                                 * @description Of a guest: the fence process guards it, so that it can be recovered.
                                 * @enum {integer}
                                 */
                                guarded?: 0 | 1;
                                /** @description Of a guest: why it is in that state. */
                                reason?: string | null;
                                /** @description Of a node's agent: what its fence devices did, or why they could not, for people. */
                                fenced?: string;
                                /** @description Of fencing: `armed`, `standby`, `disarming`, `disarmed`. */
                                "armed-state"?: string;
                                /** @description Of fencing: what becomes of resources while HA is disarmed. */
                                resource_mode?: string | null;
                            }[];
                        };
                    };
                };
            };
        };
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/cluster/resources": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get: {
            parameters: {
                query?: {
                    /** @description Resources of this kind alone. */
                    type?: "vm" | "storage" | "node" | "sdn";
                };
                header?: never;
                path?: never;
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            data: {
                                /** @description `node/NAME`, `qemu/VMID`, `storage/NODE/NAME`. */
                                id: string;
                                /**
                                 * @description What it is.
                                 * @enum {string}
                                 */
                                type: "node" | "qemu" | "storage";
                                /**
                                 * Format: pve-node
                                 * @description The node, or where it is.
                                 */
                                node?: string;
                                /** @description Of a node `online` or `offline`; of a guest `running`, `stopped` or `unknown`; of a storage `available` or `unknown`. */
                                status: string;
                                /**
                                 * Format: pve-vmid
                                 * @description Of a guest: its number.
                                 */
                                vmid?: number;
                                /** @description Of a guest: its name. */
                                name?: string;
                                /**
                                 * @description Of a guest: it is a template.
                                 * @enum {integer}
                                 */
                                template?: 0 | 1;
                                /** @description Of a guest: tags, joined by `;`. */
                                tags?: string;
                                /** @description Of a guest: the lock in its configuration. */
                                lock?: string;
                                /** @description Of a guest: where others may reach it, by the word of the agent in it; for who may ask that. */
                                addresses?: string[];
                                /** @description Of a guest under HA: its state there. */
                                hastate?: string;
                                /** @description Of a node: always empty; clients expect it. */
                                level?: string;
                                /** @description Share of all its CPUs. */
                                cpu?: number;
                                /** @description CPUs. */
                                maxcpu?: number;
                                /** @description Memory taken. */
                                mem?: number;
                                /** @description Memory in all. */
                                maxmem?: number;
                                /** @description Disk taken. */
                                disk?: number;
                                /** @description Disk in all. */
                                maxdisk?: number;
                                /** @description Since its start. */
                                uptime?: number;
                                /** @description Of a guest, since its start. */
                                netin?: number;
                                /** @description Of a guest, since its start. */
                                netout?: number;
                                /** @description Of a guest, since its start. */
                                diskread?: number;
                                /** @description Of a guest, since its start. */
                                diskwrite?: number;
                                /**
                                 * Format: pve-storage-id
                                 * @description Of a storage: its name.
                                 */
                                storage?: string;
                                /** @description Of a storage: its type. */
                                plugintype?: string;
                                /**
                                 * @description Of a storage: all nodes see the same.
                                 * @enum {integer}
                                 */
                                shared?: 0 | 1;
                                /** @description Of a storage: what it may hold, joined by commas. */
                                content?: string;
                            }[];
                        };
                    };
                };
            };
        };
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/cluster/tasks": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get: {
            parameters: {
                query?: never;
                header?: never;
                path?: never;
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            data: {
                                /**
                                 * Format: pve-upid
                                 * @description The task.
                                 */
                                upid: string;
                                /**
                                 * Format: pve-node
                                 * @description Where it runs or ran.
                                 */
                                node: string;
                                /** @description The daemon's process. */
                                pid: number;
                                /** @description The task's number in that process. */
                                pstart: number;
                                /** @description When it began: seconds since 1970. */
                                starttime: number;
                                /** @description What it does: `qmstart`, ... */
                                type: string;
                                /** @description What it works on. */
                                id: string;
                                /** @description Who asked for it. */
                                user: string;
                                /** @description When it ended: seconds since 1970. Not there while it runs. */
                                endtime?: number;
                                /** @description How it ended: `OK`, `WARNINGS: n`, or what went wrong. Not there while it runs. */
                                status?: string;
                            }[];
                        };
                    };
                };
            };
        };
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/nodes/{node}/status": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get: {
            parameters: {
                query?: never;
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                };
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            /** @description `/nodes/{node}/status`. Bytes, seconds, shares of 1. */
                            data: {
                                /** @description Since the host booted. */
                                uptime: number;
                                /** @description Share of all CPUs. */
                                cpu: number;
                                /** @description The rest of the CPUs. */
                                idle: number;
                                /** @description Load of the last 1, 5 and 15 minutes. */
                                loadavg: string[];
                                /** @description The kernel's name and release. */
                                kversion: string;
                                /** @description The kernel. */
                                "current-kernel": {
                                    /** @description `Linux`. */
                                    sysname: string;
                                    /** @description Its release. */
                                    release: string;
                                    /** @description Its build. */
                                    version: string;
                                    /** @description The architecture. */
                                    machine: string;
                                };
                                /** @description What clients read a version of. */
                                pveversion: string;
                                /** @description The daemon's version. */
                                steadversion: string;
                                /** @description Memory. */
                                memory: {
                                    /** @description In all. */
                                    total: number;
                                    /** @description Taken. */
                                    used: number;
                                    /** @description Not taken. */
                                    free: number;
                                    /** @description What could be had. */
                                    available?: number;
                                    /** @description As `available`, of file systems. */
                                    avail?: number;
                                };
                                /** @description Swap. */
                                swap: {
                                    /** @description In all. */
                                    total: number;
                                    /** @description Taken. */
                                    used: number;
                                    /** @description Not taken. */
                                    free: number;
                                    /** @description What could be had. */
                                    available?: number;
                                    /** @description As `available`, of file systems. */
                                    avail?: number;
                                };
                                /** @description The root file system. */
                                rootfs: {
                                    /** @description In all. */
                                    total: number;
                                    /** @description Taken. */
                                    used: number;
                                    /** @description Not taken. */
                                    free: number;
                                    /** @description What could be had. */
                                    available?: number;
                                    /** @description As `available`, of file systems. */
                                    avail?: number;
                                };
                                /** @description The CPUs. */
                                cpuinfo: {
                                    /** @description Their name. */
                                    model: string;
                                    /** @description How many, each thread of a core counted. */
                                    cpus: number;
                                    /** @description Cores, of all sockets. */
                                    cores: number;
                                    /** @description Sockets. */
                                    sockets: number;
                                    /** @description How fast the first one runs now, if the kernel tells. */
                                    mhz?: string;
                                    /** @description `1` if they can run guests by themselves, else `0`; where the kernel tells what they can. */
                                    hvm?: string;
                                    /** @description What they can, as the kernel names it. */
                                    flags?: string;
                                };
                                /** @description How the host was started. */
                                "boot-info": {
                                    /** @description `efi` or `legacy-bios`. */
                                    mode: string;
                                };
                                /**
                                 * @description The node holds a lease: it may run guests under HA.
                                 * @enum {integer}
                                 */
                                lease: 0 | 1;
                            };
                        };
                    };
                };
            };
        };
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/nodes/{node}/tasks": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get: {
            parameters: {
                query?: {
                    /** @description Only those that failed. */
                    errors?: boolean;
                    /** @description How many at most. */
                    limit?: number;
                    /** @description Started at or after, seconds since 1970. */
                    since?: number;
                    /** @description Finished ones, running ones, or both. */
                    source?: "archive" | "active" | "all";
                    /** @description How many to leave out at the beginning. */
                    start?: number;
                    /** @description Only those that ended so. */
                    statusfilter?: string;
                    /** @description Only those of this type. */
                    typefilter?: string;
                    /** @description Started at or before, seconds since 1970. */
                    until?: number;
                    /** @description Only those of users whose name has this part. */
                    userfilter?: string;
                    /** @description Only those on this guest. */
                    vmid?: number;
                };
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                };
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            data: {
                                /**
                                 * Format: pve-upid
                                 * @description The task.
                                 */
                                upid: string;
                                /**
                                 * Format: pve-node
                                 * @description Where it runs or ran.
                                 */
                                node: string;
                                /** @description The daemon's process. */
                                pid: number;
                                /** @description The task's number in that process. */
                                pstart: number;
                                /** @description When it began: seconds since 1970. */
                                starttime: number;
                                /** @description What it does: `qmstart`, ... */
                                type: string;
                                /** @description What it works on. */
                                id: string;
                                /** @description Who asked for it. */
                                user: string;
                                /** @description When it ended: seconds since 1970. Not there while it runs. */
                                endtime?: number;
                                /** @description How it ended: `OK`, `WARNINGS: n`, or what went wrong. Not there while it runs. */
                                status?: string;
                            }[];
                        };
                    };
                };
            };
        };
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/nodes/{node}/tasks/{upid}/status": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get: {
            parameters: {
                query?: never;
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                    /** @description The task. */
                    upid: string;
                };
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            /** @description How one task stands. */
                            data: {
                                /**
                                 * Format: pve-upid
                                 * @description The task.
                                 */
                                upid: string;
                                /**
                                 * Format: pve-node
                                 * @description Where it runs or ran.
                                 */
                                node: string;
                                /** @description The daemon's process. */
                                pid: number;
                                /** @description The task's number in that process. */
                                pstart: number;
                                /** @description When it began: seconds since 1970. */
                                starttime: number;
                                /** @description What it does: `qmstart`, ... */
                                type: string;
                                /** @description What it works on. */
                                id: string;
                                /** @description Who asked for it. */
                                user: string;
                                /**
                                 * @description Whether it goes on.
                                 * @enum {string}
                                 */
                                status: "running" | "stopped";
                                /** @description How it ended: `OK`, `WARNINGS: n`, or what went wrong. Not there while it runs. */
                                exitstatus?: string;
                            };
                        };
                    };
                };
            };
        };
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/nodes/{node}/tasks/{upid}/log": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get: {
            parameters: {
                query?: {
                    /** @description The first line, counted from zero. */
                    start?: number;
                    /** @description How many lines at most. */
                    limit?: number;
                    /** @description The whole log as a file. */
                    download?: boolean;
                };
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                    /** @description The task. */
                    upid: string;
                };
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            data: {
                                /** @description Its number, from 1. */
                                n: number;
                                /** @description Its text. */
                                t: string;
                            }[];
                        };
                    };
                };
            };
        };
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/nodes/{node}/tasks/{upid}": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get?: never;
        put?: never;
        post?: never;
        delete: {
            parameters: {
                query?: never;
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                    /** @description The task. */
                    upid: string;
                };
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            data: null;
                        };
                    };
                };
            };
        };
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/nodes/{node}/qemu/{vmid}/status/current": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get: {
            parameters: {
                query?: never;
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                    /** @description The VM. */
                    vmid: number;
                };
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            /** @description A VM's status with what its owner alone knows. */
                            data: {
                                /**
                                 * Format: pve-vmid
                                 * @description Its number.
                                 */
                                vmid: number;
                                /** @description `running`, `stopped`, or `unknown` where its owner does not report. */
                                status: string;
                                /** @description The program's own word: `running`, `paused`, `prelaunch`, `inmigrate`, ... */
                                qmpstatus: string;
                                /** @description Its name. */
                                name: string;
                                /**
                                 * @description It is a template.
                                 * @enum {integer}
                                 */
                                template: 0 | 1;
                                /** @description CPUs. */
                                cpus: number;
                                /** @description Share of its CPUs. */
                                cpu: number;
                                /** @description Memory taken: by its system's word, if that tells; else what its process takes on the host. */
                                mem: number;
                                /** @description Memory in all. */
                                maxmem: number;
                                /** @description Memory that its process takes on the host. */
                                memhost?: number;
                                /** @description Not measured from outside: 0. */
                                disk: number;
                                /** @description Size of its first disk. */
                                maxdisk: number;
                                /** @description Since its start. */
                                uptime: number;
                                /** @description Since its start. */
                                netin: number;
                                /** @description Since its start. */
                                netout: number;
                                /** @description Since its start. */
                                diskread: number;
                                /** @description Since its start. */
                                diskwrite: number;
                                /** @description Its process. */
                                pid?: number;
                                /** @description The lock in its configuration. */
                                lock?: string;
                                /** @description Tags, joined by `;`. */
                                tags?: string;
                                /** @description The versioned machine type that runs. */
                                "running-machine"?: string;
                                /** @description The program's version that runs. */
                                "running-qemu"?: string;
                                /** @description Where others may reach it, by the word of the agent in it a while ago; for who may ask that. */
                                addresses?: string[];
                                /** @description How HA sees it. */
                                ha: {
                                    /**
                                     * @description It is under HA's care.
                                     * @enum {integer}
                                     */
                                    managed: 0 | 1;
                                    /** @description What HA is asked to keep it in. */
                                    requested?: string;
                                    /** @description The manager's state of it. */
                                    state?: string;
                                };
                                /**
                                 * @description It is told to have a guest agent.
                                 * @enum {integer}
                                 */
                                agent: 0 | 1;
                                /** @description The epoch under which its owner may run it. */
                                epoch: number;
                                /** @description What runs its CPUs: `kvm` or `tcg`. */
                                accel?: string;
                                /** @description What its balloon leaves it, in bytes. */
                                balloon?: number;
                                /** @description Memory in which its system has nothing, in bytes. */
                                freemem?: number;
                                /** @description What its system tells by its balloon. */
                                ballooninfo?: {
                                    /** @description What it leaves the VM. */
                                    actual: number;
                                    /** @description What the VM was given. */
                                    max_mem: number;
                                    /** @description When its system told the rest: seconds since 1970. */
                                    last_update?: number;
                                    /** @description All that its system can use. */
                                    total_mem?: number;
                                    /** @description What nothing is in. */
                                    free_mem?: number;
                                    /** @description Read back from disk. */
                                    mem_swapped_in?: number;
                                    /** @description Put out to disk. */
                                    mem_swapped_out?: number;
                                    /** @description Pages that had to be read. */
                                    major_page_faults?: number;
                                    /** @description Pages that only had to be found. */
                                    minor_page_faults?: number;
                                };
                                /** @description Its weight when memory is shared out, where its balloon follows the host's memory. */
                                shares?: number;
                            };
                        };
                    };
                };
            };
        };
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/nodes/{node}/qemu/{vmid}/pending": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get: {
            parameters: {
                query?: never;
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                    /** @description The VM. */
                    vmid: number;
                };
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            data: {
                                /** @description Its name. */
                                key: string;
                                /** @description What holds now: a number or text. */
                                value?: number | string;
                                /** @description What will hold after the next start. */
                                pending?: number | string;
                                /** @description It will be taken out: 1, or 2 by force. */
                                delete?: number;
                            }[];
                        };
                    };
                };
            };
        };
        put?: never;
        post?: never;
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/nodes/{node}/qemu/{vmid}/migrate": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get: {
            parameters: {
                query?: {
                    /** @description Ask about this node alone. */
                    target?: string;
                };
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                    /** @description The VM. */
                    vmid: number;
                };
                cookie?: never;
            };
            requestBody?: never;
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            /** @description What speaks against a migration. */
                            data: {
                                /**
                                 * @description The VM runs.
                                 * @enum {integer}
                                 */
                                running: 0 | 1;
                                /** @description Nodes that can take it. */
                                allowed_nodes: string[];
                                /** @description Nodes that cannot, with the reasons. */
                                not_allowed_nodes: {
                                    [key: string]: {
                                        /** @description In words. */
                                        reasons: string[];
                                    };
                                };
                                /** @description Volumes that other nodes do not have. */
                                local_disks: {
                                    /** @description The volume. */
                                    volid: string;
                                    /**
                                     * @description It is a CD.
                                     * @enum {integer}
                                     */
                                    cdrom: 0 | 1;
                                    /**
                                     * @description The VM does not use it.
                                     * @enum {integer}
                                     */
                                    is_unused: 0 | 1;
                                    /** @description Its size in bytes, if it is known. */
                                    size?: number;
                                }[];
                                /** @description Options that give it devices of the host. */
                                local_resources: string[];
                                /** @description Options that give it devices of the host under names of the cluster's. */
                                "mapped-resources": string[];
                                /** @description Their names. */
                                "mapped-resource-info": {
                                    [key: string]: {
                                        /** @description The name. */
                                        name: string;
                                    };
                                };
                                /**
                                 * @description There is no such state.
                                 * @enum {integer}
                                 */
                                "has-dbus-vmstate": 0 | 1;
                            };
                        };
                    };
                };
            };
        };
        put?: never;
        post: {
            parameters: {
                query?: never;
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                    /** @description The VM. */
                    vmid: number;
                };
                cookie?: never;
            };
            requestBody: {
                content: {
                    "application/x-www-form-urlencoded": {
                        /**
                         * Format: pve-node
                         * @description Where to.
                         */
                        target: string;
                        /**
                         * @description While it runs.
                         * @default 0
                         */
                        online?: boolean;
                        /** @description KiB a second at most; 0: no limit. */
                        bwlimit?: number;
                        /**
                         * @description How the stream is carried: `secure` alone.
                         * @enum {string}
                         */
                        migration_type?: "secure" | "insecure";
                        /** @description The network by whose addresses its memory and disks go, as `10.1.0.0/16`; without it that of `migration` in the cluster's options. It is one of the nodes' links. */
                        migration_network?: string;
                        /** @description Where volumes go that the target has not, if not to storages of the same names: `STORAGE` for all, or pairs `FROM:TO`, separated by commas. */
                        targetstorage?: string;
                        /**
                         * @description Volumes of a VM that runs go along, too; those of one that does not run do in any case.
                         * @default 0
                         */
                        "with-local-disks"?: boolean;
                    };
                };
            };
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            /**
                             * Format: pve-upid
                             * @description the task's id
                             */
                            data: string;
                        };
                    };
                };
            };
        };
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/nodes/{node}/qemu/{vmid}/status/start": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get?: never;
        put?: never;
        post: {
            parameters: {
                query?: never;
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                    /** @description The VM. */
                    vmid: number;
                };
                cookie?: never;
            };
            requestBody?: {
                content: {
                    "application/x-www-form-urlencoded": {
                        /**
                         * @description Over a lock; root@pam alone.
                         * @default 0
                         */
                        skiplock?: boolean;
                        /** @description Seconds within which it must run, or it is ended again; without it, or with 0, each step has its own limit. HA, which starts what it maintains, has limits of its own. */
                        timeout?: number;
                    };
                };
            };
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            /**
                             * Format: pve-upid
                             * @description the task's id
                             */
                            data: string;
                        };
                    };
                };
            };
        };
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/nodes/{node}/qemu/{vmid}/status/shutdown": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get?: never;
        put?: never;
        post: {
            parameters: {
                query?: never;
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                    /** @description The VM. */
                    vmid: number;
                };
                cookie?: never;
            };
            requestBody?: {
                content: {
                    "application/x-www-form-urlencoded": {
                        /**
                         * @description Over a lock; root@pam alone.
                         * @default 0
                         */
                        skiplock?: boolean;
                        /** @description Seconds to wait for the VM's system. */
                        timeout?: number;
                        /**
                         * @description Stop it if its system has not shut down in time.
                         * @default 0
                         */
                        forceStop?: boolean;
                        /**
                         * @description Volumes are never switched off, so they stay as they are in any case.
                         * @default 0
                         */
                        keepActive?: boolean;
                    };
                };
            };
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            /**
                             * Format: pve-upid
                             * @description the task's id
                             */
                            data: string;
                        };
                    };
                };
            };
        };
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/nodes/{node}/qemu/{vmid}/status/stop": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get?: never;
        put?: never;
        post: {
            parameters: {
                query?: never;
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                    /** @description The VM. */
                    vmid: number;
                };
                cookie?: never;
            };
            requestBody?: {
                content: {
                    "application/x-www-form-urlencoded": {
                        /**
                         * @description Over a lock; root@pam alone.
                         * @default 0
                         */
                        skiplock?: boolean;
                        /** @description Seconds that its process may take to flush its disks and end by itself, before it is killed; 10 without it. */
                        timeout?: number;
                        /**
                         * @description Volumes are never switched off, so they stay as they are in any case.
                         * @default 0
                         */
                        keepActive?: boolean;
                        /**
                         * @description Ask graceful shutdowns that are under way to give up first.
                         * @default 0
                         */
                        "overrule-shutdown"?: boolean;
                    };
                };
            };
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            /**
                             * Format: pve-upid
                             * @description the task's id
                             */
                            data: string;
                        };
                    };
                };
            };
        };
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/nodes/{node}/qemu/{vmid}/status/reboot": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get?: never;
        put?: never;
        post: {
            parameters: {
                query?: never;
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                    /** @description The VM. */
                    vmid: number;
                };
                cookie?: never;
            };
            requestBody?: {
                content: {
                    "application/x-www-form-urlencoded": {
                        /** @description Seconds to wait for the VM's system. */
                        timeout?: number;
                    };
                };
            };
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            /**
                             * Format: pve-upid
                             * @description the task's id
                             */
                            data: string;
                        };
                    };
                };
            };
        };
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
    "/nodes/{node}/qemu/{vmid}/vncproxy": {
        parameters: {
            query?: never;
            header?: never;
            path?: never;
            cookie?: never;
        };
        get?: never;
        put?: never;
        post: {
            parameters: {
                query?: never;
                header?: never;
                path: {
                    /** @description The node. */
                    node: string;
                    /** @description The VM. */
                    vmid: number;
                };
                cookie?: never;
            };
            requestBody?: {
                content: {
                    "application/x-www-form-urlencoded": {
                        /**
                         * @description Make a password for the screen, instead of using the ticket's beginning.
                         * @default 0
                         */
                        "generate-password"?: boolean;
                        /** @description Reach it by a WebSocket. There is no other way. */
                        websocket?: boolean;
                    };
                };
            };
            responses: {
                /** @description Success */
                200: {
                    headers: {
                        [name: string]: unknown;
                    };
                    content: {
                        "application/json": {
                            /** @description What opens a screen or a terminal. Contains a secret. */
                            data: {
                                /** @description Who may use it. */
                                user: string;
                                /** @description Shows it. */
                                ticket: string;
                                /** @description What it is for; no listener. */
                                port: string;
                                /** @description Of a screen: its password, if one was to be made. */
                                password?: string;
                                /** @description Of a screen: the cluster CA's certificate. */
                                cert?: string;
                            };
                        };
                    };
                };
            };
        };
        delete?: never;
        options?: never;
        head?: never;
        patch?: never;
        trace?: never;
    };
}
export type webhooks = Record<string, never>;
export interface components {
    schemas: never;
    responses: never;
    parameters: never;
    requestBodies: never;
    headers: never;
    pathItems: never;
}
export type $defs = Record<string, never>;
export type operations = Record<string, never>;
